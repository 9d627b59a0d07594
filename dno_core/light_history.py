"""The warning lights of a whole run: a light that went out again still leaves its trace."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .lights import warning_lights
from .objective import TermInfo
from .trajectories.trajectory import Record


def lights_of_run(terms: Sequence[TermInfo], records: Sequence[Record]) -> tuple[str, ...]:
    """Every light that was on in some iteration, once, with the iteration in which it first was.

    Worded as in the last iteration in which it was on: the numbers in its sentence may move.
    """
    first: dict[str, int] = {}
    worded: dict[str, str] = {}
    for count in range(1, len(records) + 1):
        for light in warning_lights(terms, records[:count]):
            kind = re.sub(r"\d+%|iteration \d+", "#", light)
            first.setdefault(kind, records[count - 1].index)
            worded[kind] = light
    return tuple(f"{worded[kind]} First lit at iteration {i}." for kind, i in first.items())
