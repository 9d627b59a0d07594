"""Experiment 1: does the probability regularizer keep the judge's score at equal reward?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import Arm, Contrast, Experiment, Figure, Recipe

GRID = (0.0075, 0.015, 0.03, 0.06)
"""Learning rates of Adam."""

PAPER: Mapping[str, Any] = {"class": "PermutationRegularizer", "gamma": 1.0}
OFF: Mapping[str, Any] = {"class": "NoRegularizer"}
SIDES = {"on": PAPER, "off": OFF}

VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "gamma_0.1": ("gamma 0.1", {**PAPER, "gamma": 0.1}),
    "gamma_10": ("gamma 10", {**PAPER, "gamma": 10.0}),
    "k_2": ("k 2", {**PAPER, "k": 2}),
    "k_16": ("k 16", {**PAPER, "k": 16}),
    "b_0": ("b 0", {**PAPER, "permutations": 0}),
    "b_20": ("b 20", {**PAPER, "permutations": 20}),
    "uniform": ("uniform permutations", {**PAPER, "family": "uniform"}),
}
"""The paper's regularizer otherwise set; they take the learning rate that was tuned for it."""

OTHERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "norm": ("norm (ReNO)", {"class": "NormRegularizer", "gamma": 0.01}),
    "sphere": ("sphere projection", {"class": "SphereProjection"}),
    "spectral_step": ("spectral, step", {"class": "SpectralWhitening", "target": "step"}),
    "spectral_gradient": (
        "spectral, gradient",
        {"class": "SpectralWhitening", "target": "gradient"},
    ),
}
"""Other methods, each tuned in as many trials."""

PIXEL_REWARDS = ("brightness", "darkness")
PIXEL_RATE = 0.03
"""DNO Sampler's default."""

HASTE = 0.06
FEW = 8


def _recipe(regularizer: Mapping[str, Any], reward: str = "clip_score") -> Recipe:
    return Recipe("climbs.dno", {"regularizer": regularizer}, reward=reward)


def _arms() -> tuple[Arm, ...]:
    few: dict[str, Any] = {"prompts": FEW, "rank": 1}
    return (
        Arm("on", "regularizer on", _recipe(PAPER), GRID, seeds=2),
        Arm("off", "regularizer off", _recipe(OFF), GRID, seeds=2),
        *(
            Arm(name, label, _recipe(OTHERS[name][1]), GRID, **few)
            for name, (label, _) in OTHERS.items()
        ),
        *(
            Arm(name, label, _recipe(regularizer), like="on", **few)
            for name, (label, regularizer) in VARIANTS.items()
        ),
        Arm("off_same", "off, at the rate of on", _recipe(OFF), like="on", prompts=16, rank=1),
        *(
            Arm(f"{name}_fast", f"{name}, rate {HASTE:g}", _recipe(kept), (HASTE,), **few)
            for name, kept in SIDES.items()
        ),
        *(
            Arm(f"{r}_{name}", f"{r}, {name}", _recipe(kept, r), (PIXEL_RATE,), **few)
            for r in PIXEL_REWARDS
            for name, kept in SIDES.items()
        ),
    )


EXPERIMENT = Experiment(
    name="regularizer",
    title="Does the probability regularizer keep the picture good at equal reward?",
    arms=_arms(),
    contrasts=(
        Contrast("on", "off", primary=True),
        *(Contrast(name, "off") for name in OTHERS),
        *(Contrast(name, "on") for name in (*OTHERS, *VARIANTS)),
        Contrast("on", "off_same"),
        Contrast("on_fast", "off_fast"),
        *(Contrast(f"{reward}_on", f"{reward}_off") for reward in PIXEL_REWARDS),
    ),
    figures=(
        Figure("CLIPScore", ("on", "off", *OTHERS)),
        Figure("The paper's regularizer, other settings", ("on", "off", *VARIANTS)),
        Figure("CLIPScore, one learning rate", ("on", "off_same")),
        Figure(f"CLIPScore in haste, rate {HASTE:g}", ("on_fast", "off_fast")),
        *(Figure(r.capitalize(), tuple(f"{r}_{name}" for name in SIDES)) for r in PIXEL_REWARDS),
    ),
)
