"""Experiment 3: how much fresh noise a step should take (SDE against ODE)."""

from __future__ import annotations

from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER

ETAS = (1.0, 0.5, 0.0)


def _arm(eta: float) -> Arm:
    recipe = Recipe("climbs.dno", {"regularizer": PAPER}, eta=eta)
    kind = {1.0: " (SDE)", 0.0: " (ODE)"}.get(eta, "")
    return Arm(f"eta_{eta:g}", f"eta {eta:g}{kind}", recipe, GRID)


EXPERIMENT = Experiment(
    name="eta",
    title="SDE against ODE: eta 1, 0.5 and 0",
    arms=tuple(_arm(eta) for eta in ETAS),
    contrasts=(
        Contrast("eta_0.5", "eta_1"),
        Contrast("eta_0", "eta_1"),
        Contrast("eta_0", "eta_0.5"),
    ),
    figures=(Figure("eta", tuple(f"eta_{eta:g}" for eta in ETAS)),),
)
