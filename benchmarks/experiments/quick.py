"""The same experiment in small: every arm once, to see that the command works."""

from __future__ import annotations

from dataclasses import replace

from .plan import Arm, Experiment

PROMPTS, ITERATIONS, STEPS = 2, 2, 3
PLAIN_SAMPLES = 4


def quick(experiment: Experiment) -> Experiment:
    """2 prompts, 2 iterations, 3 steps; only arms of rank 0 are tuned, in 2 trials on 1 prompt."""
    return replace(experiment, arms=tuple(map(_small, experiment.arms)))


def _small(arm: Arm) -> Arm:
    trials = 2 if arm.rank == 0 else 1
    recipe = replace(arm.recipe, iterations=min(ITERATIONS, arm.recipe.iterations), steps=STEPS)
    return replace(arm, recipe=recipe, grid=arm.grid[:trials], prompts=PROMPTS, seeds=1, tuned_on=1)
