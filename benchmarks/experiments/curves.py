"""What is kept of a run: for every image one curve, a row an iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from comfyui_dno.dno_core import TYPICAL, Iteration

from .cases import Case
from .judging import Judge
from .setting import Bench


@dataclass(frozen=True)
class Snapshot:
    """What a method has after an iteration: all [B], `image` [B,3,H,W] in [0,1].

    `objective` in units of the reward's scale. `quantile` of P(z) and `step_low` are None for a
    method that has no noise to look at. `loop` is the objective that a loop on fewer steps saw
    (None: the same). `iteration`, `cost` and `seconds` (per image) where a method knows them
    better than who counts its snapshots.
    """

    image: Tensor
    objective: Tensor
    quantile: Tensor | None = None
    step_low: Tensor | None = None
    saturated: Tensor | None = None
    loop: Tensor | None = None
    iteration: int | None = None
    cost: float | None = None
    seconds: float | None = None


def snapshot(iteration: Iteration) -> Snapshot:
    reading = iteration.typicality
    return Snapshot(
        image=iteration.image,
        objective=iteration.objective,
        quantile=reading.quantile,
        step_low=reading.step_low,
        saturated=iteration.saturated,
    )


@dataclass(frozen=True)
class Curve:
    """One image's run; every list has a value for each iteration, the picture it began with first.

    `cost` in forward-equivalents and `seconds` of processor time, both up to and with that
    iteration; `objective` in scales of the reward, `judge` in scales of the judge, `distance` to
    plain samples (1: a plain sample's own), `quantile` of P(z), `step_low` the lowest quantile of
    a single step's noise, `saturated` share of pixel values. NaN where there is none. `iteration`
    and `loop` (the objective as a loop on fewer steps saw it) are empty where a row is an
    iteration.
    """

    prompt: str
    seed: int
    cost: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    judge: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    quantile: list[float] = field(default_factory=list)
    step_low: list[float] = field(default_factory=list)
    saturated: list[float] = field(default_factory=list)
    iteration: list[int] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)

    @property
    def case(self) -> Case:
        return Case(self.prompt, self.seed)

    def __len__(self) -> int:
        return len(self.objective)

    @property
    def returned(self) -> int:
        """The row that DNO Sampler would return: the best of those with typical noise. A row of a
        loop on fewer steps is already that; no look before it may be taken instead."""
        if self.loop:
            return len(self) - 1
        typical = [i for i, q in enumerate(self.quantile) if i == 0 or not q <= TYPICAL]
        return max(typical, key=lambda i: self.objective[i])

    def until(self, iteration: int) -> Curve:
        """The same run, had it been stopped there."""
        cut = {name: getattr(self, name)[: iteration + 1] for name in (*COLUMNS, *OF_SNAPSHOTS)}
        return Curve(self.prompt, self.seed, **cut)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


COLUMNS = (
    "cost", "seconds", "objective", "judge", "distance", "quantile", "step_low", "saturated"
)  # fmt: skip

OF_SNAPSHOTS = ("iteration", "loop")


def record(
    snapshots: Iterator[Snapshot], bench: Bench, judge: Judge
) -> tuple[list[Curve], list[Tensor]]:
    """Follow a run to its end; the curves, and the first and the last pictures.

    The judge works off the clock.
    """
    curves = [Curve(case.prompt, case.seed) for case in bench.cases]
    pictures: list[Tensor] = []
    spent, began = 0.0, time.process_time()
    for found in snapshots:
        spent += time.process_time() - began
        absent = torch.full_like(found.objective, torch.nan)
        columns = {
            "objective": found.objective,
            "judge": judge.scores(found.image, bench.cases),
            "distance": judge.distances(found.image, bench.cases),
            "quantile": absent if found.quantile is None else found.quantile,
            "step_low": absent if found.step_low is None else found.step_low,
            "saturated": absent if found.saturated is None else found.saturated,
            "cost": torch.full_like(
                absent, bench.costs.spent if found.cost is None else found.cost
            ),
            "seconds": torch.full_like(
                absent, spent / len(curves) if found.seconds is None else found.seconds
            ),
        }
        if found.loop is not None:
            columns["loop"] = found.loop
        for name, values in columns.items():
            for curve, value in zip(curves, values.tolist(), strict=True):
                getattr(curve, name).append(float(f"{value:.6g}"))
        if found.iteration is not None:
            for curve in curves:
                curve.iteration.append(found.iteration)
        pictures = [*pictures[:1], found.image]
        began = time.process_time()
    return curves, pictures
