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
from .regularizer import PAPER
from .running import Results
from .setting import Lab

CHEAP_ITERATIONS = 30
LOOKS = (3, 6, 10, 15, 20, 25)
RATES = (0.0075, 0.015, 0.03)

PROMPTS, TUNED_ON, TUNED_FOR, BATCH = 10, 4, 20, 5

MODES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "exact": ("exact", {"name": "exact"}),
    "last3": ("last 3", {"name": "last k", "k": 3}),
    "linear": ("linear", {"name": "linear"}),
}

PLAN = (
    ("exact", 10),
    ("last3", 50),
    ("linear", 50),
)
"""Mode and steps of the loop."""

REFINED, REFINED_SLOWLY, REFINE_AFTER = "refined", "refined_slowly", 12
"""Exact in 10 steps, then the last 3 in all 50, from the best noise found so far."""


def _arm(mode: str, steps: int, label: str = "", **more: Any) -> Arm:
    name, arguments = MODES[mode]
    options = {"regularizer": PAPER, "mode": arguments, **more}
    if steps < STEPS:
        options["optimize_steps"] = steps
        if not more:
            options["checkpoints"] = LOOKS
    recipe = Recipe("cheap.cheap", options, steps=STEPS, iterations=CHEAP_ITERATIONS)
    return _tuned(f"{mode}_{steps}", label or f"{name}, {steps} steps", recipe)


def _refined() -> Arm:
    arm = _arm(
        "exact",
        10,
        f"exact, 10 steps; from {REFINE_AFTER} on last 3, {STEPS} steps",
        refine_after=REFINE_AFTER,
        refine_mode=MODES["last3"][1],
    )
    return replace(arm, name=REFINED)


def _tuned(name: str, label: str, recipe: Recipe) -> Arm:
    return Arm(
        name,
        label,
        recipe,
        RATES,
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
    _refined(),
    replace(
        _refined(),
        name=REFINED_SLOWLY,
        label=f"{_refined().label}, slower",
        grid=(),
        like=REFERENCE,
    ),
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
        Figure("Climbs in all steps", (REFERENCE, "last3_50", "linear_50")),
        Figure("Climbs in 10 steps, redrawn", (REFERENCE, "exact_10", REFINED, REFINED_SLOWLY)),
    ),
    extra=extra,
    trials=len(RATES),
    measure=measure,
)
