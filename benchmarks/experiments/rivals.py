"""What DNO is held against, each for the forward-equivalents that so many DNO iterations cost.

A method that looks at one picture after another shows the best so far. A guided picture comes
from noise that nobody touched, so its P(z) says nothing. ReNO returns its highest reward whatever
the noise, so its P(z) stands in the column of the single steps, where it decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from comfyui_dno.dno_core import Typicality

from . import search
from .climbs import dno
from .compare import SLACK
from .counting import BACKWARD, DECODE, DECODE_BACKWARD, FORWARD
from .curves import Snapshot
from .guidance import Guidance, guided_samples
from .search import Draw, Seen
from .setting import Bench

WEIGHTS = (1.0,)


def best_of_n(bench: Bench, knob: float, iterations: int) -> Iterator[Snapshot]:
    """Plain samples, N by the budget. It has no knob: `knob` is not read."""
    seen = search.best_of_n(bench.problem, bench.z, WEIGHTS, _draw(bench))
    return best_so_far(bench, seen, iterations)


def random_neighbours(bench: Bench, distance: float, iterations: int) -> Iterator[Snapshot]:
    seen = search.random_neighbours(bench.problem, bench.z, WEIGHTS, _draw(bench), distance)
    return best_so_far(bench, seen, iterations)


def guidance(
    bench: Bench, strength: float, iterations: int, *, samples: int = 0, recurrence: int = 1
) -> Iterator[Snapshot]:
    """Guided pictures from fresh noise, one after another until the budget is spent.

    The reward's own work is charged to nobody; guidance asks it at every step.
    """
    bench.noise_map.forward(bench.z)  # the map's denoiser replays the states of a forward run
    wanted = Guidance(strength, samples, recurrence)
    seen = guided_samples(
        bench.problem, ChargedDenoiser(bench), bench.z, WEIGHTS, _draw(bench), wanted
    )
    return best_so_far(bench, seen, iterations, measured=False)


def reno(
    bench: Bench, learning_rate: float, iterations: int, *, regularizer: Mapping[str, Any]
) -> Iterator[Snapshot]:
    """ReNO (Eyring et al., arXiv 2406.04312) on this bench's sampler, to be run at eta 0.

    SGD with Nesterov momentum 0.9, its norm regularizer, gradient norm at most 0.1.
    """
    climb = dno(
        bench, learning_rate, iterations, regularizer=regularizer, optimizer="sgd", clip=0.1
    )
    for found in climb:
        yield replace(found, quantile=None, step_low=found.quantile)


def screened(
    bench: Bench,
    learning_rate: float,
    iterations: int,
    *,
    seeds: int,
    regularizer: Mapping[str, Any],
) -> Iterator[Snapshot]:
    """The best of so many plain samples first, and DNO from its noise with what is left."""
    kept: list[Seen] = []

    def looks() -> Iterator[Seen]:
        plain = search.best_of_n(bench.problem, bench.z, WEIGHTS, _draw(bench))
        for seen in itertools.islice(plain, seeds):
            kept.append(seen)
            yield seen

    yield from best_so_far(bench, looks(), iterations)
    left = budget(bench, iterations) - bench.costs.spent
    from_there = replace(bench, z=best_noise(kept))
    climb = dno(from_there, learning_rate, affordable(bench, left), regularizer=regularizer)
    yield from itertools.islice(climb, 1, None)  # its first picture has been shown


def best_noise(seen: Sequence[Seen]) -> Tensor:
    """For every image the noise that scored highest."""
    winners = torch.stack([found.objective for _, found in seen]).argmax(0).tolist()
    return torch.stack([seen[winner][0][:, image] for image, winner in enumerate(winners)], dim=1)


def picture_price(bench: Bench) -> float:
    return len(bench.noise_map.steps) * FORWARD + DECODE


def iteration_price(bench: Bench) -> float:
    """A DNO iteration: back from the picture in hand, forward to the next one."""
    return len(bench.noise_map.steps) * BACKWARD + DECODE_BACKWARD + picture_price(bench)


def budget(bench: Bench, iterations: int) -> float:
    """What DNO's picture at the start and `iterations` iterations cost an image."""
    return picture_price(bench) + iterations * iteration_price(bench)


def affordable(bench: Bench, left: float) -> int:
    """DNO iterations, its picture at the start included, for so many forward-equivalents."""
    return max(int((left - picture_price(bench)) / iteration_price(bench) + 1e-9), 0)


def best_so_far(
    bench: Bench, seen: Iterator[Seen], iterations: int, measured: bool = True
) -> Iterator[Snapshot]:
    """For every image the best picture up to now, while another one fits the budget.

    The first look is always made. `measured`: P(z) of the noise that is in hand is shown.
    """
    limit, before, best = budget(bench, iterations), bench.costs.spent, None
    typicality = Typicality()
    for z, found in seen:
        now = Snapshot(found.image, found.objective, saturated=found.saturated)
        if measured:
            reading = typicality(z)
            now = replace(now, quantile=reading.quantile, step_low=reading.step_low)
        best = now if best is None else _better(best, now)
        yield best
        price = bench.costs.spent - before
        if bench.costs.spent + price > limit * SLACK:
            return
        before = bench.costs.spent


@dataclass(frozen=True)
class ChargedDenoiser:
    """A bench's noise map in parts; every denoiser call is charged with its gradient."""

    bench: Bench

    @property
    def steps(self) -> Any:
        return self.bench.noise_map.steps

    @property
    def start(self) -> Any:
        return self.bench.noise_map.start

    def denoise(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        self.bench.costs.charge(len(x), BACKWARD)
        return self.bench.noise_map.denoise(x, sigma, z0)


def _draw(bench: Bench) -> Draw:
    return search.draw_for([case.seed for case in bench.cases], bench.z)


def _better(old: Snapshot, new: Snapshot) -> Snapshot:
    """Per image the one with the higher objective."""
    higher = new.objective > old.objective

    def pick(name: str) -> Tensor | None:
        a, b = getattr(new, name), getattr(old, name)
        if a is None or b is None:
            return None
        return torch.where(higher.view(-1, *[1] * (a.ndim - 1)), a, b)

    return Snapshot(*(pick(name) for name in Snapshot.__dataclass_fields__))  # type: ignore[arg-type]
