"""Experiment 5: Adam, SGD with Nesterov momentum, steps of unit length; learning rates."""

from __future__ import annotations

from typing import Any

from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER
from .running import Results
from .tables import mean_of

GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "adam": ("Adam", GRID),
    "sgd": ("SGD, Nesterov", (0.15, 0.5, 1.5, 5.0)),
    "unit": ("unit-norm steps", (0.5, 1.0, 2.0, 4.0)),
}
LONG = 50
PRESETS = {"Fast": 10, "Balanced": 20, "Strong": LONG}
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


def presets(results: Results) -> str:
    """What the long runs had to return after as many iterations as a preset has."""
    lines = [
        "### Presets\n\nWhat DNO Sampler would return after so many iterations: reward and judge, "
        "in their scales, over the picture one had.\n",
        "| learning rate | " + " | ".join(f"{name}: {at}" for name, at in PRESETS.items()) + " |",
        "|" + " --- |" * (1 + len(PRESETS)),
    ]
    for rate in GRID[:3]:
        curves = results.curves.get(f"long_{rate:g}")
        if curves is not None:
            cells = []
            for at in PRESETS.values():
                cut = [curve.until(at) for curve in curves]
                reward = mean_of(cut, lambda c: c.objective[c.returned] - c.objective[0])
                judge = mean_of(cut, lambda c: c.judge[c.returned] - c.judge[0])
                cells.append(f"reward {reward}, judge {judge}")
            lines.append(f"| {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
    extra=presets,
)
