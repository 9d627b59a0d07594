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
    LateMap,
    NonFinite,
    Part,
    Problem,
    Settings,
    late_begin,
    learning_rate_at,
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
    checkpoints: Sequence[int] = (),
    **options: Any,
) -> Iterator[Snapshot]:
    """A climb as `loop_of` describes it.

    `checkpoints`: the iterations after which the winner of a loop on fewer steps is looked at, the
    last one always; a loop on all steps, or one that finishes on them, needs none of this and shows
    every iteration that has taken all of them.
    """
    run = islice(loop_of(bench, learning_rate, iterations, options), iterations + 1)
    all_steps = len(bench.noise_map.steps)
    if options.get("finish_iterations"):
        yield from _finishing(run, bench)
    elif options.get("optimize_steps", 0) in range(1, all_steps):
        yield from _redrawn(run, bench, {0, *checkpoints, iterations})
    else:
        yield from map(snapshot, _until_overflow(run))


def loop_of(
    bench: Bench, learning_rate: float, iterations: int, options: Mapping[str, Any]
) -> Iterator[Iteration]:
    """The climb that a recipe's options describe, without end; exact, in all steps by default.

    `regularizer`: {"class": name in dno_core, and its arguments}. `mode`: the arguments of
    GradientMode. `optimize_steps`: steps of the loop (0: all). `finish_iterations`: so many of the
    `iterations`, the last ones, take all steps. `late_iterations`: so many of them move the noise
    of the last two fifths of the steps alone. `warmup`: of the learning rate.
    """
    mode = GradientMode(**options.get("mode", {}))
    keeper = make(options["regularizer"])
    settings = settings_of(learning_rate, keeper)

    def problem(noise_map: Any) -> Problem:
        counted = CountingMap(noise_map.in_mode(mode), bench.costs)
        return replace(bench.problem, noise_map=counted)

    steps, last = options.get("optimize_steps", 0), options.get("finish_iterations", 0)
    noise_map: Any = bench.noise_map

    def settings_at(index: int) -> Settings:
        rate = learning_rate_at(index, learning_rate, options.get("warmup", 0))
        return replace(settings, learning_rate=rate)

    begun = problem(noise_map.coarse(steps) if steps else noise_map)
    parts = [Part(iterations - last, problem(noise_map))] if last else []
    late = options.get("late_iterations", 0)
    if late:
        end = LateMap(noise_map, late_begin(len(noise_map.steps)))
        parts.append(Part(iterations - late, problem(end), end.held))
    return optimize(
        begun,
        bench.z,
        settings_at,
        seed=bench.key,
        regularizer=keeper,
        check_tolerance=None,
        parts=parts,
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


def _finishing(run: Iterator[Iteration], bench: Bench) -> Iterator[Snapshot]:
    """The first picture in all steps, which is charged, then the iterations that take them."""
    counted = replace(bench.problem, noise_map=CountingMap(bench.noise_map, bench.costs))
    all_steps = len(bench.noise_map.steps)
    for iteration in _until_overflow(run):
        if iteration.index == 0:
            drawn = counted.evaluate(bench.z, (1.0,))
            first = replace(
                iteration,
                image=drawn.image,
                objective=drawn.objective,
                saturated=drawn.saturated,
            )
            yield replace(snapshot(first), iteration=0)
        elif iteration.steps == all_steps:
            yield replace(snapshot(iteration), iteration=iteration.index)


def better_of(found: Snapshot, first: Snapshot) -> Snapshot:
    """Image by image `found`, or `first` where that scores higher; the bill is that of `found`."""
    kept = found.objective >= first.objective

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(kept.view(-1, *[1] * (a.ndim - 1)), a, b)

    columns = ("image", "objective", "quantile", "step_low", "saturated")
    chosen = {name: choose(getattr(found, name), getattr(first, name)) for name in columns}
    return replace(found, **chosen)
