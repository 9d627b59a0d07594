"""Widgets that DNO Sampler was given after its first release.

They come last and are optional: saved workflows keep their values, and API workflows that do not
name them go on working.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dno_core import DECAYS
from .presets import preset_input


def added_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "warmup",
            default=0,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="Iterations over which the learning rate rises to its full value. Raise it "
            "if the first iterations jump. 0 to 5; 0 is off.",
        ),
        io.Combo.Input(
            "decay",
            options=list(DECAYS),
            default=DECAYS[0],
            optional=True,
            advanced=True,
            tooltip="cosine lets the learning rate fall to 0 over all iterations, so that the end "
            "settles; take it with a higher learning rate. constant can be resumed with more "
            "iterations without a jump.",
        ),
        io.Int.Input(
            "screen_seeds",
            default=1,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Draw this many seeds first (seed, seed + 1, ...), score them, and start from "
            "the best one of every picture. Each costs one plain run, about a quarter of an "
            "iteration. Raise it where seeds differ much. 1 is off, usually 4 to 16. Not used "
            "when a run is resumed.",
        ),
        io.String.Input(
            "changes",
            default="",
            optional=True,
            advanced=True,
            tooltip="What was changed by hand while a run went on, written here in the workflow of "
            "the saved picture, so that the run repeats itself. Usually empty; clear it to run "
            "without the changes.",
        ),
        preset_input(),
    ]
