"""When a gain is reached: the first moment at which stopping would have returned it, on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .curves import Curve

SHARE = 0.9
"""Of the reference's gain, which the other arms are timed to."""


@dataclass(frozen=True)
class Moment:
    """What returning the pictures after `row` gives, means over the runs: gains over the first
    pictures in scales, cost in forward-equivalents and seconds, both per image; `lowest` is the
    lowest quantile of P(z) of any run."""

    row: int
    iteration: int
    gain: float
    judge: float
    quantile: float
    lowest: float
    cost: float
    seconds: float


def moment(curves: Sequence[Curve], row: int) -> Moment:
    """What was to be had after `row`; runs that ended before have stayed as they were."""
    ends = [min(row, len(curve) - 1) for curve in curves]
    cut = [curve.until(end) for curve, end in zip(curves, ends, strict=True)]
    kept = [curve.returned for curve in cut]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def gained(column: str) -> float:
        rows = [getattr(curve, column) for curve in cut]
        return mean([values[at] - values[0] for values, at in zip(rows, kept, strict=True)])

    quantiles = [curve.quantile[at] for curve, at in zip(cut, kept, strict=True)]
    longest = max(cut, key=len)
    return Moment(
        row=row,
        iteration=longest.iteration[-1] if longest.iteration else len(longest) - 1,
        gain=gained("objective"),
        judge=gained("judge"),
        quantile=mean(quantiles),
        lowest=min(quantiles),
        cost=mean([curve.cost[-1] for curve in cut]),
        seconds=mean([curve.seconds[-1] for curve in cut]),
    )


def moments(curves: Sequence[Curve]) -> list[Moment]:
    return [moment(curves, row) for row in range(max(len(curve) for curve in curves))]


def reach(curves: Sequence[Curve], gain: float) -> Moment | None:
    """The first row whose mean gain is at least `gain`, nothing interpolated; None if none is."""
    return next((found for found in moments(curves) if found.gain >= gain), None)
