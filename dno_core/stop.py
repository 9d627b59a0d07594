"""Stop rules: each looks at what has happened and gives a reason to stop, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .trajectory import Record


class StopRule(Protocol):
    """Called after every iteration with all records so far, the newest last."""

    def __call__(self, records: Sequence[Record]) -> str | None: ...


def after_iterations(count: int) -> StopRule:
    """Stop once `count` optimizer iterations follow iteration 0."""

    def rule(records: Sequence[Record]) -> str | None:
        return f"all {count} iterations done" if len(records) > count else None

    return rule


def after_seconds(limit: float) -> StopRule:
    """Stop once the iterations, pauses excluded, have taken `limit` seconds."""

    def rule(records: Sequence[Record]) -> str | None:
        spent = sum(record.seconds for record in records)
        return f"{spent:.0f} s spent of {limit:.0f} s" if spent >= limit else None

    return rule


def first_reason(rules: Sequence[StopRule], records: Sequence[Record]) -> str | None:
    """The reason of the first rule that has one."""
    return next((reason for rule in rules if (reason := rule(records)) is not None), None)
