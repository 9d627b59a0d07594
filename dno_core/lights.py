"""The warning lights: signs that the reward is being hacked rather than earned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .objective import TermInfo, objective
from .probability.typicality import TYPICAL
from .trajectories.trajectory import Record, objectives

SATURATION_RISE = 0.5
"""Rise of the share of clamped pixel values, over iteration 0, that is called suspicious."""


def warning_lights(terms: Sequence[TermInfo], records: Sequence[Record]) -> tuple[str, ...]:
    """What the artist should know of the newest iteration, each in one sentence; () if all is well.

    Lights when an image's P(z) leaves the typical range of Gaussian noise, or the noise of a single
    step does while the whole looks typical (unless it did at the start), when many more pixel
    values are clamped than in iteration 0, and when a watched reward has lost more than its scale
    (by its own goal) while the optimized objective rose.
    """
    since = None
    for record in reversed(records[1:]):
        if min(record.quantile) > TYPICAL:
            break
        since = record.index
    return lights_between(terms, records[0], records[-1], since)


def lights_between(
    terms: Sequence[TermInfo], first: Record, last: Record, since: int | None
) -> tuple[str, ...]:
    """The lights of `last` in a run that began with `first` and has been untypical `since`."""
    lights = []
    if since is not None:
        lights.append(
            f"P(z) has left the typical range (since iteration {since}): the noise is no longer "
            "one the model would draw. Raise the regularizer's strength or lower the learning rate."
        )
    elif _a_step_left(first, last):
        lights.append(
            "The noise of a single step has left the typical range, though P(z) of the whole has "
            "not. Raise the regularizer's strength or lower the learning rate."
        )
    rise = max(b - a for a, b in zip(first.saturated, last.saturated, strict=True))
    if rise > SATURATION_RISE:
        lights.append(
            f"{rise:.0%} more of the pixel values are burnt out than at the start. "
            "Lower the learning rate or use a milder reward."
        )
    rose = objectives(terms, [first, last]).mean(1).diff() > 0
    for index, term in enumerate(terms):
        if term.watch and bool(rose) and _progress(term, index, first, last) < -1:
            lights.append(
                f"The watched reward '{term.name}' has fallen by more than its usual spread. "
                "The picture may be getting worse while its score rises."
            )
    return tuple(lights)


def _a_step_left(first: Record, last: Record) -> bool:
    pairs = zip(first.step_low, last.step_low, strict=False)
    return any(now <= TYPICAL < before for before, now in pairs)


def _progress(term: TermInfo, index: int, first: Record, last: Record) -> float:
    """How far a term has come towards its own goal, mean over the batch, in units of its scale."""
    scores = torch.tensor([first.scores[index], last.scores[index]])[:, None]
    before, now = (objective([term], pair, [1.0]).mean() for pair in scores)
    return float(now - before)
