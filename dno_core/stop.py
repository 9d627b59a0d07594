"""Stop rules: each looks at what has happened and gives a reason to stop, or None.

The images of a batch share a run, and none shall lose its climb to another: a rule that looks at
images speaks when its reason holds for every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .objective import TermInfo, objective
from .probability.typicality import TYPICAL
from .trajectories.trajectory import Record, best_iterations, objectives


class StopRule(Protocol):
    """Called after every iteration with all records so far, the newest last."""

    def __call__(self, records: Sequence[Record]) -> str | None: ...


def after_iterations(count: int) -> StopRule:
    """Stop once `count` optimizer iterations follow iteration 0, those before a resume included."""
    _require(count >= 0, "iterations", count, "0 or more")

    def rule(records: Sequence[Record]) -> str | None:
        return f"all {count} iterations done" if records[-1].index >= count else None

    return rule


def after_seconds(limit: float, start: int = 0) -> StopRule:
    """Stop once the iterations from `start` on, pauses excluded, have taken `limit` seconds.

    A resumed run passes its first new iteration, so that only its own time counts.
    """
    _require(limit >= 0, "time limit", limit, "0 or more seconds")

    def rule(records: Sequence[Record]) -> str | None:
        spent = sum(record.seconds for record in records if record.index >= start)
        return f"{spent:.0f} s spent of {limit:.0f} s" if spent >= limit else None

    return rule


def at_target(
    terms: Sequence[TermInfo],
    score: float,
    term: int | str | None = None,
    tolerance: float = 0.05,
) -> StopRule:
    """Stop once the best so far of every image is as good as `score`, by the term's own goal.

    `term`: index or name; None is the first one that is optimized. maximize: at or above; minimize:
    at or below; target: at least as close to the target as `score` is, within `tolerance` of the
    term's scale. Best is that of `best_iterations`: what the run would return.

    Raises ValueError for a term that is not there and for numbers that mean nothing.
    """
    place = _find(terms, term)
    chosen = terms[place]
    _require(math.isfinite(score), "target score", score, "a finite number")
    _require(tolerance >= 0, "tolerance", tolerance, "0 or more")
    slack = tolerance if chosen.goal == "target" else 0.0
    wanted = objective([chosen], torch.tensor([[score]], dtype=torch.float64), [1.0])

    def rule(records: Sequence[Record]) -> str | None:
        best = best_iterations(terms, records)
        scores = [records[i].scores[place][image] for image, i in enumerate(best)]
        values = objective([chosen], torch.tensor([scores], dtype=torch.float64), [1.0])
        if bool((values >= wanted - slack).all()):
            return f"'{chosen.name}' has reached its target of {score:g}"
        return None

    return rule


def on_plateau(terms: Sequence[TermInfo], patience: int, min_gain: float = 0.0) -> StopRule:
    """Stop once no image's best objective has gained more than `min_gain` in `patience` iterations.

    In units of the objective, that is in scales of a reward of weight 1. The best counts typical
    iterations only, and both ends are judged by the current weights. Iterations drawn in as many
    steps as the last are compared, others are not.
    """
    _require(patience >= 1, "patience", patience, "1 or more iterations")
    _require(min_gain >= 0, "least gain", min_gain, "0 or more")

    def rule(records: Sequence[Record]) -> str | None:
        records = _alike(records)
        if len(records) <= patience:
            return None
        values = objectives(terms, records)
        weights = records[-1].settings.weights
        before = best_iterations(terms, records[:-patience], weights)
        now = best_iterations(terms, records, weights)
        images = torch.arange(len(now))
        gain = values[list(now), images] - values[list(before), images]
        if bool((gain <= min_gain).all()):
            return f"no gain above {min_gain:g} in {patience} iterations"
        return None

    return rule


def when_untypical(quantile: float = TYPICAL, patience: int = 1) -> StopRule:
    """Stop once P(z) has left the typical range: at or below `quantile` for `patience` iterations.

    Looks at the whole noise and, where it was measured, at its worst step. A run that *starts*
    outside (plain noise does at this rate) has left nothing yet and goes on.
    """
    _require(0 < quantile < 1, "quantile", quantile, "between 0 and 1")
    _require(patience >= 1, "patience", patience, "1 or more iterations")

    def rule(records: Sequence[Record]) -> str | None:
        images = range(len(records[-1].quantile))
        recent, earlier = records[-patience:], records[:-patience]
        if any(_inside(record, image, quantile) for record in recent for image in images):
            return None
        if any(_inside(record, image, quantile) for record in earlier for image in images):
            return f"P(z) left the typical range at iteration {recent[0].index}"
        return None

    return rule


def when_watched_falls(terms: Sequence[TermInfo], drop: float = 1.0, patience: int = 1) -> StopRule:
    """Stop once a watched reward lies more than `drop` of its scale below its best so far, by its
    own goal, while the objective has risen since that best: for `patience` iterations in a row.

    Without a watched reward it never speaks. Iterations drawn in as many steps as the last are
    compared, others are not.
    """
    _require(drop > 0, "drop", drop, "above 0")
    _require(patience >= 1, "patience", patience, "1 or more iterations")
    watched = [(place, term) for place, term in enumerate(terms) if term.watch]

    def rule(records: Sequence[Record]) -> str | None:
        records = _alike(records)
        if not watched or len(records) <= patience:
            return None
        rewarded = objectives(terms, records)
        for place, term in watched:
            scores = torch.tensor([record.scores[place] for record in records])
            held_out = objective([term], scores[None], [1.0])
            last = range(len(records) - patience, len(records))
            if all(_has_fallen(held_out[: i + 1], rewarded[: i + 1], drop) for i in last):
                return f"the watched reward '{term.name}' has fallen while the optimized one rose"
        return None

    return rule


def _alike(records: Sequence[Record]) -> list[Record]:
    """Those drawn in as many steps as the last: the scores of others are of other pictures."""
    return [record for record in records if record.steps == records[-1].steps]


def _has_fallen(held_out: torch.Tensor, rewarded: torch.Tensor, drop: float) -> bool:
    """Of the last of these iterations [I,B]: whether every image is below its held-out peak."""
    peak = held_out.argmax(0, keepdim=True)
    fall = held_out.gather(0, peak)[0] - held_out[-1]
    rise = rewarded[-1] - rewarded.gather(0, peak)[0]
    return bool(((fall > drop) & (rise > 0)).all())


def first_reason(rules: Sequence[StopRule], records: Sequence[Record]) -> str | None:
    """The reason of the first rule that has one."""
    return next((reason for rule in rules if (reason := rule(records)) is not None), None)


@dataclass(frozen=True)
class StopChoice:
    """Which rules a run is to have, chosen before its terms are known.

    `target`: score of the first optimized reward, or None. `plateau`: iterations without a gain
    above `min_gain`; 0 is off. `patience` is that of `untypical` and `watched_falls`: on the demo
    model most dips of P(z) that come back take one or two iterations.
    """

    target: float | None = None
    plateau: int = 0
    min_gain: float = 0.05
    untypical: bool = True
    watched_falls: bool = True
    drop: float = 1.0
    patience: int = 5

    def rules(self, terms: Sequence[TermInfo]) -> list[StopRule]:
        """Raises ValueError for numbers that mean nothing."""
        rules: list[StopRule] = []
        if self.target is not None:
            rules.append(at_target(terms, self.target))
        if self.plateau:
            rules.append(on_plateau(terms, self.plateau, self.min_gain))
        if self.untypical:
            rules.append(when_untypical(patience=self.patience))
        if self.watched_falls:
            rules.append(when_watched_falls(terms, self.drop, self.patience))
        return rules


def _inside(record: Record, image: int, quantile: float) -> bool:
    return min((record.quantile[image], *record.step_low[image : image + 1])) > quantile


def _find(terms: Sequence[TermInfo], term: int | str | None) -> int:
    if term is None:
        optimized = [i for i, each in enumerate(terms) if not each.watch and each.weight]
        if optimized:
            return optimized[0]
        raise ValueError("No reward is optimized, so none has a target. Give one a weight.")
    names = [each.name for each in terms]
    if isinstance(term, str) and term in names:
        return names.index(term)
    if isinstance(term, int) and 0 <= term < len(terms):
        return term
    raise ValueError(f"There is no reward {term!r} to set a target for. Use one of {names}.")


def _require(good: bool, what: str, value: float, allowed: str) -> None:
    if not good:
        raise ValueError(f"The {what} of the stop rule is {value}. It must be {allowed}.")
