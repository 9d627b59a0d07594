"""Comparisons within pairs: two arms on the same prompt and seed, bootstrap over the prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from comfyui_dno.dno_core import TYPICAL

from .curves import Curve

RESAMPLES = 10_000
DETECTABLE = 1.96 + 0.84
"""Standard errors of an effect that a two-sided test at 5 % finds with a power of 80 %."""

FEWEST_PROMPTS = 6

SLACK = 1.02
"""What a budget may be passed by: methods that buy picture by picture cannot stop on the dot."""

LEVELS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Effect:
    """A mean difference, its 95 % interval, and the least effect that could have been seen."""

    mean: float
    low: float
    high: float
    detectable: float
    prompts: int
    pairs: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero, and comes from prompts enough to mean anything."""
        return self.prompts >= FEWEST_PROMPTS and (self.low > 0 or self.high < 0)


Measure = Callable[[Curve, Curve], float]


def pairs(arm: Sequence[Curve], against: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Curves of both arms on the same case, for the cases that both have."""
    others = {curve.case: curve for curve in against}
    return [(curve, others[curve.case]) for curve in arm if curve.case in others]


def effect(found: Sequence[tuple[Curve, Curve]], measure: Measure) -> Effect:
    """Bootstrap of `measure` over prompts, its mean taken within each prompt first.

    Pairs whose measure is NaN are left out. Fixed seed; NaN where there is nothing to compare.
    """
    by_prompt: dict[str, list[float]] = {}
    for a, b in found:
        value = measure(a, b)
        if not math.isnan(value):
            by_prompt.setdefault(a.prompt, []).append(value)
    if not by_prompt:
        return Effect(math.nan, math.nan, math.nan, math.nan, 0, 0)
    means = np.array([np.mean(values) for values in by_prompt.values()])
    draws = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
    resampled = means[draws].mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    count = sum(len(values) for values in by_prompt.values())
    return Effect(
        float(means.mean()), float(low), float(high), DETECTABLE * error, len(means), count
    )


def at_equal_reward(column: str) -> Measure:
    """Difference of a column where both have reached R, the lower of the two best rewards."""

    def measure(a: Curve, b: Curve) -> float:
        level = min(max(a.objective), max(b.objective))
        return at_level(a, level, column) - at_level(b, level, column)

    return measure


def on_the_way(column: str) -> Measure:
    """The same, averaged over four levels from a quarter of the way up to R."""

    def measure(a: Curve, b: Curve) -> float:
        start = max(a.objective[0], b.objective[0])
        top = max(min(max(a.objective), max(b.objective)), start)
        levels = [start + share * (top - start) for share in LEVELS]
        return float(np.mean([at_level(a, x, column) - at_level(b, x, column) for x in levels]))

    return measure


def at_level(curve: Curve, level: float, column: str) -> float:
    """A column where the objective first reaches `level`, interpolated between iterations."""
    values, reached = getattr(curve, column), curve.objective
    index = next((i for i, value in enumerate(reached) if value >= level), None)
    if index is None:
        return math.nan
    if index == 0:
        return values[0]
    share = (level - reached[index - 1]) / (reached[index] - reached[index - 1])
    return values[index - 1] + share * (values[index] - values[index - 1])


def reward_at_equal_cost(a: Curve, b: Curve) -> float:
    """Difference of the best typical reward when both have cost what the cheaper one costs."""
    budget = min(a.cost[-1], b.cost[-1])
    return best_within(a, budget) - best_within(b, budget)


def best_within(curve: Curve, budget: float) -> float:
    """The highest objective among typical iterations that cost at most `budget`, within 2 %; of a
    loop on fewer steps what its last look within it would return."""
    reached = [
        value
        for index, (value, cost, quantile) in enumerate(
            zip(curve.objective, curve.cost, curve.quantile, strict=True)
        )
        if index == 0 or (cost <= budget * SLACK and not quantile <= TYPICAL)
    ]
    return reached[-1] if curve.loop else max(reached)


def returned(column: str) -> Measure:
    """Difference of a column in the iterations that DNO Sampler would return."""

    def measure(a: Curve, b: Curve) -> float:
        return getattr(a, column)[a.returned] - getattr(b, column)[b.returned]

    return measure


def last(column: str) -> Measure:
    """Difference of a column in the last iterations."""

    def measure(a: Curve, b: Curve) -> float:
        return getattr(a, column)[-1] - getattr(b, column)[-1]

    return measure


MEASURES: dict[str, Measure] = {
    "reward at equal cost": reward_at_equal_cost,
    "judge at equal reward": at_equal_reward("judge"),
    "distance at equal reward": at_equal_reward("distance"),
    "cost at equal reward": at_equal_reward("cost"),
    "judge on the way": on_the_way("judge"),
    "distance on the way": on_the_way("distance"),
    "reward returned": returned("objective"),
    "judge returned": returned("judge"),
    "distance returned": returned("distance"),
    "P(z) quantile at the end": last("quantile"),
    "lowest step's quantile at the end": last("step_low"),
    "saturated share at the end": last("saturated"),
}
"""Rewards and judge in their scales, costs in forward-equivalents."""
