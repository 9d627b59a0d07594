"""DNO with cheap gradients and few steps in the loop; what is returned is drawn in all steps.

Of a loop on fewer steps, the best noise so far is drawn again with all steps and scored: that, or
the picture one began with, is what a snapshot shows. Both drawings are charged to the moment at
which one would stop, once; those of earlier snapshots are looks, off the bill.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from comfyui_dno.dno_core import (
    TYPICAL,
    GradientMode,
    Iteration,
    NonFinite,
    Problem,
    optimize,
)

from .climbs import make, settings_of
from .counting import DECODE, FORWARD, CountingMap
from .curves import Snapshot, snapshot
from .setting import Bench

REDRAWN = 2
"""The winner and the picture one began with."""


def cheap(
    bench: Bench,
    learning_rate: float,
    iterations: int,
    *,
    regularizer: Mapping[str, Any],
    mode: Mapping[str, Any],
    optimize_steps: int = 0,
    checkpoints: Sequence[int] = (),
    refine_after: int = 0,
    refine_mode: Mapping[str, Any] | None = None,
    refine_rate: float = 0.0,
    clip: float = 1.0,
) -> Iterator[Snapshot]:
    """`mode`: the arguments of GradientMode. `optimize_steps`: steps of the loop (0: all).

    `checkpoints`: the iterations after which the winner of a loop on fewer steps is looked at, the
    last one always; a loop on all steps needs none of this, and shows every iteration. With
    `refine_after` so many iterations are made on fewer steps and the others, from the best noise
    found, on all of them in `refine_mode`, at `refine_rate` (0: the same learning rate).
    """
    options = {"regularizer": regularizer, "mode": mode, "optimize_steps": optimize_steps}
    run = islice(
        loop_of(bench, bench.z, learning_rate, options, clip), (refine_after or iterations) + 1
    )
    if refine_after:
        going_on = {"regularizer": regularizer, "mode": refine_mode}
        rest = iterations - refine_after
        rate = refine_rate or learning_rate
        yield from _refined(run, bench, rate, going_on, refine_after, rest)
    elif optimize_steps and optimize_steps < len(bench.noise_map.steps):
        yield from _redrawn(run, bench, {0, *checkpoints, iterations})
    else:
        yield from map(snapshot, _until_overflow(run))


def loop_of(
    bench: Bench,
    z: Tensor,
    learning_rate: float,
    options: Mapping[str, Any],
    clip: float = 1.0,
) -> Iterator[Iteration]:
    """The climb that a recipe's options describe, without end; exact, in all steps by default."""
    noise_map = bench.noise_map
    if options.get("optimize_steps"):
        noise_map = noise_map.coarse(options["optimize_steps"])
    noise_map = noise_map.in_mode(GradientMode(**options.get("mode", {})))
    keeper = make(options["regularizer"])
    settings = settings_of(learning_rate, keeper, clip)
    return optimize(
        replace(bench.problem, noise_map=CountingMap(noise_map, bench.costs)),
        z,
        lambda index: settings,
        seed=bench.key,
        regularizer=keeper,
        check_tolerance=None,
    )


def _until_overflow(run: Iterable[Iteration]) -> Iterator[Iteration]:
    """A run whose numbers overflow ends there; what came before counts."""
    try:
        yield from run
    except NonFinite:
        return


@dataclass
class Winner:
    """For every image the best iteration so far whose noise is typical, or the first one."""

    z: Tensor
    objective: Tensor
    quantile: Tensor
    step_low: Tensor

    @staticmethod
    def of(first: Iteration) -> Winner:
        reading = first.typicality
        return Winner(
            first.z.clone(),
            first.objective.clone(),
            reading.quantile.clone(),
            reading.step_low.clone(),
        )

    def meet(self, iteration: Iteration) -> None:
        reading = iteration.typicality
        better = (iteration.objective > self.objective) & (reading.quantile > TYPICAL)
        self.z[:, better] = iteration.z[:, better]
        self.objective[better] = iteration.objective[better]
        self.quantile[better] = reading.quantile[better].to(self.quantile)
        self.step_low[better] = reading.step_low[better].to(self.step_low)


def _redrawn(run: Iterator[Iteration], bench: Bench, looks: set[int]) -> Iterator[Snapshot]:
    bare = Problem(bench.noise_map, bench.decoder, bench.problem.terms)
    redraw_cost = REDRAWN * (len(bench.noise_map.steps) * FORWARD + DECODE)
    images = len(bench.cases)
    winner: Winner | None = None
    first: Snapshot | None = None
    spent = 0.0
    began = time.process_time()
    for iteration in _until_overflow(run):
        winner = winner or Winner.of(iteration)
        winner.meet(iteration)
        if iteration.index not in looks:
            continue
        spent += time.process_time() - began
        began = time.process_time()
        drawn = bare.evaluate(winner.z, (1.0,))
        redraw = REDRAWN * (time.process_time() - began)
        found = Snapshot(
            image=drawn.image,
            objective=drawn.objective,
            quantile=winner.quantile.clone(),
            step_low=winner.step_low.clone(),
            saturated=drawn.saturated,
            loop=winner.objective.clone(),
            iteration=iteration.index,
            cost=bench.costs.spent + redraw_cost,
            seconds=(spent + redraw) / images,
        )
        first = first or found
        yield better_of(found, first)
        began = time.process_time()


def _refined(
    run: Iterator[Iteration],
    bench: Bench,
    learning_rate: float,
    going_on: Mapping[str, Any],
    before: int,
    rest: int,
) -> Iterator[Snapshot]:
    """The first picture in all steps, then the iterations in all steps after those in few.

    The first of them draws the winner of the few; the picture one began with is paid once.
    """
    winner: Winner | None = None
    for iteration in _until_overflow(run):
        winner = winner or Winner.of(iteration)
        winner.meet(iteration)
    if winner is None:
        return
    first = next(loop_of(bench, bench.z, learning_rate, going_on))
    yield replace(snapshot(first), iteration=0)
    going = islice(loop_of(bench, winner.z, learning_rate, going_on), rest + 1)
    for iteration in _until_overflow(going):
        yield replace(snapshot(iteration), iteration=before + iteration.index)


def better_of(found: Snapshot, first: Snapshot) -> Snapshot:
    """Image by image `found`, or `first` where that scores higher; the bill is that of `found`."""
    kept = found.objective >= first.objective

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(kept.view(-1, *[1] * (a.ndim - 1)), a, b)

    columns = ("image", "objective", "quantile", "step_low", "saturated")
    chosen = {name: choose(getattr(found, name), getattr(first, name)) for name in columns}
    return replace(found, **chosen)
