"""The warning lights of a whole run: a light that went out again still leaves its trace."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .lights import lights_between
from .objective import TermInfo
from .probability.typicality import TYPICAL
from .trajectories.trajectory import Record


def lights_of_run(terms: Sequence[TermInfo], records: Sequence[Record]) -> tuple[str, ...]:
    """Every light that was on in some iteration, once, with the iteration in which it first was.

    Worded as in the last iteration in which it was on: the numbers in its sentence may move.
    """
    first: dict[str, int] = {}
    worded: dict[str, str] = {}
    since = None
    for place, record in enumerate(records):
        if place == 0 or min(record.quantile) > TYPICAL:
            since = None
        elif since is None:
            since = record.index
        for light in lights_between(terms, records[0], record, since):
            kind = re.sub(r"\d+%|iteration \d+", "#", light)
            first.setdefault(kind, record.index)
            worded[kind] = light
    return tuple(f"{worded[kind]} First lit at iteration {i}." for kind, i in first.items())
