"""Experiment 2: Hybrid-2, Hybrid-1 and ZO-SGD where nothing is known but the reward's value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .counting import BACKWARD, DECODE, DECODE_BACKWARD, FORWARD
from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER
from .setting import STEPS

LOOKS = STEPS * FORWARD + DECODE
BACK = STEPS * BACKWARD + DECODE_BACKWARD
BUDGET_ITERATIONS = 20
BUDGET = LOOKS + BUDGET_ITERATIONS * (LOOKS + BACK)
"""What so many iterations with the true gradient cost."""

PROMPTS, TUNED_ON = 8, 3

REWARDS = {"jpeg": "jpeg_compressibility", "clip": "clip_score"}
REWARD_OPTIONS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95}, "clip": {}}
TITLES = {"jpeg": "JPEG size", "clip": "CLIPScore as a black box"}

PROBES = 8
HYBRID_2: Mapping[str, Any] = {
    "class": "Hybrid2",
    "probes": PROBES,
    "scale": 0.1,
    "antithetic": False,
    "gaussian": True,
    "combination": "least squares",
    "scaling": "fit",
}
HYBRID_2_PAPER: Mapping[str, Any] = {
    **HYBRID_2,
    "probes": 4,
    "scale": 0.01,
    "gaussian": False,
    "combination": "sum",
    "scaling": "unit",
}
HYBRID_1: Mapping[str, Any] = {"class": "Hybrid1", "probes": 64, "scale": 0.05, "antithetic": True}
ZO_SGD: Mapping[str, Any] = {
    "class": "ZoSgd",
    "probes": PROBES,
    "scale": 0.1,
    "antithetic": False,
    "gaussian": True,
}


def _iterations(runs: int, pulls: bool) -> int:
    """Iterations that the budget pays for, with so many probes by the model in each."""
    return int((BUDGET - LOOKS) / (LOOKS * (1 + runs) + BACK * pulls) + 1e-9)


ESTIMATORS: dict[str, tuple[str, Mapping[str, Any], int]] = {
    "hybrid_2": (f"Hybrid-2, {PROBES} probes", HYBRID_2, _iterations(PROBES, True)),
    "hybrid_1": ("Hybrid-1, 64 probes", HYBRID_1, _iterations(0, True)),
    "zo_sgd": (f"ZO-SGD, {PROBES} probes", ZO_SGD, _iterations(PROBES, False)),
}


def _recipe(reward: str, estimator: Mapping[str, Any], iterations: int) -> Recipe:
    return Recipe(
        "climbs.dno",
        {"regularizer": PAPER, "estimator": estimator},
        reward=REWARDS[reward],
        reward_options=REWARD_OPTIONS[reward],
        iterations=iterations,
    )


def _plain(reward: str, iterations: int) -> Recipe:
    """Best of N for what so many iterations with the true gradient cost."""
    return Recipe(
        "rivals.best_of_n",
        reward=REWARDS[reward],
        reward_options=REWARD_OPTIONS[reward],
        iterations=iterations,
    )


def _arms(reward: str) -> tuple[Arm, ...]:
    return (
        *(
            Arm(
                f"{reward}_{name}",
                label,
                _recipe(reward, estimator, iterations),
                GRID,
                prompts=PROMPTS,
                tuned_on=TUNED_ON,
            )
            for name, (label, estimator, iterations) in ESTIMATORS.items()
        ),
        Arm(
            f"{reward}_hybrid_2_paper",
            "Hybrid-2 as published, 4 probes",
            _recipe(reward, HYBRID_2_PAPER, _iterations(4, True)),
            like=f"{reward}_hybrid_2",
            prompts=PROMPTS,
            rank=1,
        ),
        Arm(
            f"{reward}_best_of_n",
            "best of N",
            _plain(reward, BUDGET_ITERATIONS),
            (1.0,),
            prompts=PROMPTS,
        ),
    )


def _contrasts(reward: str) -> tuple[Contrast, ...]:
    others = ("hybrid_1", "zo_sgd", "hybrid_2_paper", "best_of_n")
    return (
        *(Contrast(f"{reward}_hybrid_2", f"{reward}_{other}") for other in others),
        Contrast(f"{reward}_hybrid_1", f"{reward}_zo_sgd"),
        *(Contrast(f"{reward}_{name}", f"{reward}_best_of_n") for name in ("hybrid_1", "zo_sgd")),
    )


GRADIENT = Arm(
    "clip_gradient",
    "true gradient",
    Recipe("climbs.dno", {"regularizer": PAPER}),
    GRID,
    prompts=PROMPTS,
)
"""Shares its trials and its runs with experiment 1, and so its shorter budget."""

EXPERIMENT = Experiment(
    name="black_box",
    title="Rewards without a gradient: Hybrid-2, Hybrid-1, ZO-SGD",
    arms=(*(arm for reward in REWARDS for arm in _arms(reward)), GRADIENT),
    contrasts=(
        *(contrast for reward in REWARDS for contrast in _contrasts(reward)),
        *(Contrast(f"clip_{name}", "clip_gradient") for name in ("hybrid_2", "hybrid_1", "zo_sgd")),
    ),
    figures=(
        *(
            Figure(
                TITLES[reward],
                (
                    *(arm.name for arm in _arms(reward)),
                    *(("clip_gradient",) if reward == "clip" else ()),
                ),
            )
            for reward in REWARDS
        ),
    ),
)
