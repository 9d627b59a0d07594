"""Axes of a chart: which span they show, and where their ticks stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

PADDING = 0.06


@dataclass(frozen=True)
class Axis:
    """The values at both ends, (value, label) of every tick, and the step between ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    step: float = 1.0

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end, held inside."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def linear_axis(
    values: Iterable[float],
    least: float,
    most: int,
    floor: float = -math.inf,
    percent: bool = False,
) -> Axis:
    """An axis around finite values that shows at least a span of `least` (> 0).

    `most`: about as many ticks. `floor`: nothing below it is shown. `percent`: shares, labelled
    in percent.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    least = max(least, 1e-6 * max(abs(low), abs(high)), 1e-12)
    missing = max(0.0, least - (high - low)) / 2
    pad = PADDING * max(high - low, least)
    low, high = low - missing - pad, high + missing + pad
    if low < floor:
        low, high = floor, max(high, floor + least)
    step = nice_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    labels = [number(t, step, percent) for t in ticks]
    return Axis(low, high, tuple(zip(ticks, labels, strict=True)), step)


def whole_axis(low: int, high: int, most: int) -> Axis:
    """An axis of whole numbers with about `most` ticks; a lone number stands in its middle."""
    if low == high:
        return Axis(low - 0.5, high + 0.5, ((low, str(low)),))
    step = max(1, round(nice_step((high - low) / most)))
    first = math.ceil(low / step)
    ticks = range(first * step, high + 1, step)
    return Axis(low, high, tuple((tick, str(tick)) for tick in ticks), step)


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `rough` (> 0)."""
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        if factor * power >= rough * (1 - 1e-9):
            return factor * power
    return 10 * power


def number(value: float, step: float, percent: bool = False) -> str:
    """A value written as finely as the step between ticks asks for."""
    if percent:
        return f"{number(100 * value, 100 * step)} %"
    size = max(abs(value), step)
    if size >= 1e6 or step < 1e-4:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text
