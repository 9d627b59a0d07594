"""Experiment 5: Adam, SGD with Nesterov momentum, steps of unit length; learning rates."""

from __future__ import annotations

from typing import Any

from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER

GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "adam": ("Adam", GRID),
    "sgd": ("SGD, Nesterov", (0.15, 0.5, 1.5, 5.0)),
    "unit": ("unit-norm steps", (0.5, 1.0, 2.0, 4.0)),
}
LONG = 50
FEW = 8


def _recipe(optimizer: str, **changed: Any) -> Recipe:
    options: dict[str, Any] = {"regularizer": PAPER}
    if optimizer != "adam":
        options["optimizer"] = optimizer  # left out for Adam: these units are shared
    return Recipe("climbs.dno", options, **changed)


def _arms() -> tuple[Arm, ...]:
    return (
        *(Arm(name, label, _recipe(name), grid) for name, (label, grid) in GRIDS.items()),
        *(
            Arm(
                f"long_{rate:g}",
                f"Adam, {rate:g}, {LONG} iterations",
                _recipe("adam", iterations=LONG),
                (rate,),
                prompts=FEW,
                rank=1,
            )
            for rate in GRID[:3]
        ),
    )


EXPERIMENT = Experiment(
    name="optimizers",
    title="Optimizers of the noise and their learning rates",
    arms=_arms(),
    contrasts=(
        Contrast("sgd", "adam"),
        Contrast("unit", "adam"),
        *(Contrast(f"long_{rate:g}", f"long_{GRID[1]:g}") for rate in (GRID[0], GRID[2])),
    ),
    figures=(
        Figure("Tuned, 15 iterations", tuple(GRIDS)),
        Figure("Adam, 50 iterations", tuple(f"long_{rate:g}" for rate in GRID[:3])),
    ),
)
