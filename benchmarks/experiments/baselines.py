"""Experiment 4: DNO against search, ReNO's recipe and guidance, at equal cost."""

from __future__ import annotations

from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import GRID, PAPER

DEFAULT_RATE = 0.03
"""DNO Sampler's learning rate."""

PROMPTS = 16
DISTANCES = (0.15, 0.3, 0.6, 0.9)
RENO_RATES = (0.7, 2.0, 6.0, 18.0)
"""ReNO's 5.0 is for noise of norm 128; the same share of ours, which is 45, is 1.8."""
STRENGTHS = (1.0, 3.0, 9.0, 27.0)
SCREENED = 8

DNO = Recipe("climbs.dno", {"regularizer": PAPER})


def _guided(name: str, label: str, rank: int, **options: int) -> Arm:
    recipe = Recipe("rivals.guidance", options)
    return Arm(name, label, recipe, STRENGTHS, prompts=PROMPTS, rank=rank)


ARMS = (
    Arm("plain", "plain sample", Recipe("rivals.best_of_n", iterations=0), (1.0,), prompts=PROMPTS),
    Arm("best_of_n", "best of N", Recipe("rivals.best_of_n"), (1.0,), prompts=PROMPTS),
    Arm("dno_default", "DNO, node default", DNO, (DEFAULT_RATE,), prompts=PROMPTS),
    Arm("dno", "DNO, tuned", DNO, GRID, prompts=PROMPTS),
    Arm(
        "dno_screened",
        f"best of {SCREENED}, then DNO",
        Recipe("rivals.screened", {"seeds": SCREENED, "regularizer": PAPER}),
        like="dno",
        prompts=PROMPTS,
    ),
    Arm(
        "neighbours",
        "random neighbours",
        Recipe("rivals.random_neighbours"),
        DISTANCES,
        prompts=PROMPTS,
    ),
    Arm(
        "reno",
        "ReNO's recipe",
        Recipe(
            "rivals.reno", {"regularizer": {"class": "NormRegularizer", "gamma": 0.01}}, eta=0.0
        ),
        RENO_RATES,
        prompts=PROMPTS,
    ),
    _guided("universal", "universal guidance", 0),
    _guided("universal_4", "universal guidance, steps done 4 times", 1, recurrence=4),
    _guided("lgd_3", "LGD-MC, 3 draws", 1, samples=3),
)

RIVALS = ("plain", "best_of_n", "neighbours", "reno", "universal", "universal_4", "lgd_3")

EXPERIMENT = Experiment(
    name="baselines",
    title="DNO against search, ReNO's recipe and guidance",
    arms=ARMS,
    contrasts=(
        *(Contrast("dno", rival) for rival in RIVALS),
        *(Contrast("dno_default", rival) for rival in RIVALS),
        Contrast("dno", "dno_default"),
        Contrast("dno_screened", "dno"),
        Contrast("dno_screened", "best_of_n"),
    ),
    figures=(Figure("CLIPScore", tuple(arm.name for arm in ARMS if arm.name != "plain")),),
)
