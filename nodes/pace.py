"""How a run goes on and when it ends: the settings of every iteration, and the stop rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..dno_core import (
    Settings,
    StopRule,
    TermInfo,
    after_iterations,
    after_seconds,
    learning_rate_at,
    weights_of,
)
from .request import Request


def settings_of(
    request: Request, gamma: float, terms: Sequence[TermInfo]
) -> Callable[[int], Settings]:
    """The settings of an iteration by its index: the learning rate follows its schedule."""
    weights = weights_of(terms)

    def settings_at(index: int) -> Settings:
        rate = learning_rate_at(
            index, request.learning_rate, request.warmup, request.iterations, request.decay
        )
        return Settings(rate, gamma, weights, request.gradient_clip)

    return settings_at


def stop_rules(request: Request, terms: Sequence[TermInfo], start: int = 0) -> list[StopRule]:
    """All rules of a run whose first new iteration is `start`; any one of them ends it."""
    rules = [after_iterations(request.iterations)]
    if request.time_limit > 0:
        rules.append(after_seconds(request.time_limit, start))
    return rules + (request.stop.rules(terms) if request.stop is not None else [])
