"""How a run goes on and when it ends: the settings of every iteration, and the stop rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..dno_core import (
    Settings,
    StopRule,
    TermInfo,
    after_iterations,
    after_seconds,
    learning_rate_at,
    weights_of,
)
from .live.changes import Change, settings_with
from .request import Request


def first_settings(request: Request, gamma: float, terms: Sequence[TermInfo]) -> Settings:
    """What the widgets say, before warm-up, decay and changes by hand."""
    return Settings(request.learning_rate, gamma, weights_of(terms), request.gradient_clip)


def settings_of(
    request: Request, first: Settings, changes: Callable[[int], Sequence[Change]]
) -> Callable[[int], Settings]:
    """The settings of an iteration by its index: as changed so far, the rate on its schedule.

    `changes` is asked with the index once for every iteration, as it begins.
    """

    def settings_at(index: int) -> Settings:
        held = settings_with(first, changes(index), index)
        rate = learning_rate_at(
            index, held.learning_rate, request.warmup, request.iterations, request.decay
        )
        return replace(held, learning_rate=rate)

    return settings_at


def stop_rules(request: Request, terms: Sequence[TermInfo], start: int = 0) -> list[StopRule]:
    """All rules of a run whose first new iteration is `start`; any one of them ends it."""
    rules = [after_iterations(request.iterations)]
    if request.time_limit > 0:
        rules.append(after_seconds(request.time_limit, start))
    return rules + (request.stop.rules(terms) if request.stop is not None else [])
