"""Experiment 6: cheap gradients and few steps in the loop, against the exact gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import cosines, redraws
from .gradient_tables import (
    COSINES,
    ITERATIONS,
    REDRAWS,
    REFERENCE,
    STEPS,
    cosines_table,
    gains_table,
    redraws_table,
    shares_table,
)
from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER
from .running import Results
from .setting import Lab

CHEAP_ITERATIONS = 30
LOOKS = (3, 6, 10, 15, 20, 25)

PROMPTS, TUNED_ON, TUNED_FOR, BATCH = 10, 4, 20, 5

MODES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "exact": ("exact", {"name": "exact"}),
    "spread5": ("spread 5", {"name": "spread k", "k": 5}),
    "spread8": ("spread 8", {"name": "spread k", "k": 8}),
    "spread10": ("spread 10", {"name": "spread k", "k": 10}),
    "last3": ("last 3", {"name": "last k", "k": 3}),
    "linear": ("linear", {"name": "linear"}),
}

PLAN = (
    ("exact", 10),
    ("spread10", 50),
    ("spread5", 50),
    ("last3", 50),
    ("linear", 50),
)
"""Mode and steps of the loop."""

FINISHING = (
    ("spread5", 16),
    ("spread8", 16),
    ("spread5", 25),
)
TAKEN_IN_FEW, TAKEN_IN_ALL = 12, 8
"""Runs in two parts: mode and steps of the first; iterations of it, and of the last on all steps.
"""

LATE_MODES = ("spread5",)
WARMUP, BEFORE_LATE, LATE = 4, 5, 25
"""Runs that end with the noise of the late steps alone: iterations before that, and of that."""


def _arm(mode: str, steps: int) -> Arm:
    few = {"optimize_steps": steps, "checkpoints": LOOKS} if steps < STEPS else {}
    label = f"{MODES[mode][0]}, {steps} steps"
    return _tuned(f"{mode}_{steps}", label, _recipe(mode, CHEAP_ITERATIONS, **few))


def _finishing(mode: str, steps: int) -> Arm:
    options = {"optimize_steps": steps, "finish_iterations": TAKEN_IN_ALL}
    label = f"{MODES[mode][0]}, {steps} steps; from {TAKEN_IN_FEW} on {STEPS} steps"
    recipe = _recipe(mode, TAKEN_IN_FEW + TAKEN_IN_ALL, **options)
    return _tuned(f"{mode}_{steps}_{STEPS}", label, recipe)


def _late(mode: str) -> Arm:
    label = f"{MODES[mode][0]}, {STEPS} steps, warm-up; from {BEFORE_LATE} on late noise"
    recipe = _recipe(mode, BEFORE_LATE + LATE, late_iterations=LATE, warmup=WARMUP)
    return replace(_tuned(f"{mode}_late", label, recipe), tuned_for=0)


def _recipe(mode: str, iterations: int, **options: Any) -> Recipe:
    described = {"regularizer": PAPER, "mode": MODES[mode][1], **options}
    return Recipe("cheap.cheap", described, steps=STEPS, iterations=iterations)


def _tuned(name: str, label: str, recipe: Recipe) -> Arm:
    return Arm(
        name,
        label,
        recipe,
        GRID,
        prompts=PROMPTS,
        tuned_on=TUNED_ON,
        tuned_for=TUNED_FOR,
        trial_options={"checkpoints": ()} if "checkpoints" in recipe.options else {},
        batch=BATCH,
    )


ARMS = (
    _tuned(
        REFERENCE,
        f"exact, {STEPS} steps",
        Recipe("climbs.dno", {"regularizer": PAPER}, steps=STEPS, iterations=ITERATIONS),
    ),
    *(_arm(*planned) for planned in PLAN),
    *(_finishing(*planned) for planned in FINISHING),
    *map(_late, LATE_MODES),
)


def measure(folder: Path, small: bool = False) -> None:
    """The cosines of the gradients and the scores of coarse drawings, each a file of `folder`."""
    lab: Lab | None = None
    for name, part in ((COSINES, cosines.measure), (REDRAWS, redraws.measure)):
        if not (folder / name).is_file():
            lab = lab or Lab()
            part(folder / name, lab, small)


def extra(results: Results) -> str:
    tables = (
        gains_table(results),
        shares_table(results),
        cosines_table(results.folder),
        redraws_table(results.folder),
    )
    return "\n\n".join(table for table in tables if table)


EXPERIMENT = Experiment(
    name="gradient_modes",
    title="Cheap gradients and few steps in the loop",
    arms=ARMS,
    contrasts=tuple(Contrast(arm.name, REFERENCE) for arm in ARMS[1:]),
    figures=(
        Figure(
            "Climbs in all steps",
            (REFERENCE, "spread10_50", "spread5_50", "last3_50", "linear_50"),
        ),
        Figure(
            "Climbs that end with the late noise",
            (REFERENCE, "spread10_50", *(f"{mode}_late" for mode in LATE_MODES)),
        ),
        Figure(
            "Climbs in few steps",
            (REFERENCE, "exact_10", *(f"{mode}_{steps}_{STEPS}" for mode, steps in FINISHING)),
        ),
    ),
    extra=extra,
    measure=measure,
)
