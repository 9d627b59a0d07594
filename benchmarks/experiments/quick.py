"""The same experiment in small: every arm once, to see that the command works."""

from __future__ import annotations

from dataclasses import replace

from .plan import Arm, Experiment

PROMPTS, ITERATIONS, STEPS = 2, 2, 3
"""Of the first arms; the others make do with one prompt and one iteration."""

PLAIN_SAMPLES = 4


def quick(experiment: Experiment) -> Experiment:
    """2 prompts, 2 iterations, 3 steps; only arms of rank 0 are tuned, in 2 trials on 1 prompt."""
    return replace(experiment, arms=tuple(map(_small, experiment.arms)))


def _small(arm: Arm) -> Arm:
    first = arm.rank == 0
    iterations = min(ITERATIONS if first else 1, arm.recipe.iterations)
    return replace(
        arm,
        recipe=replace(arm.recipe, iterations=iterations, steps=STEPS),
        grid=arm.grid[: 2 if first else 1],
        prompts=PROMPTS if first else 1,
        seeds=1,
        tuned_on=1,
    )
