"""The same experiment in small: every arm once, to see that the command works."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .plan import Arm, Experiment

PROMPTS, ITERATIONS, STEPS = 2, 2, 3
"""Of the first arms; the others make do with one prompt and one iteration."""

PLAIN_SAMPLES = 4

PARTS = ("finish_iterations", "late_iterations")
"""Options that say how long the last part of a run is."""


def quick(experiment: Experiment) -> Experiment:
    """2 prompts, 2 iterations, 3 steps; only arms of rank 0 are tuned, in 2 trials on 1 prompt."""
    measure = experiment.measure
    return replace(
        experiment,
        arms=tuple(map(_small, experiment.arms)),
        measure=None if measure is None else partial(measure, small=True),
    )


def _small(arm: Arm) -> Arm:
    first = arm.rank == 0
    parted = not set(PARTS).isdisjoint(arm.recipe.options)
    iterations = min(ITERATIONS if first or parted else 1, arm.recipe.iterations)
    options = dict(arm.recipe.options)
    if "optimize_steps" in options:
        options["optimize_steps"] = STEPS - 1
    options |= {name: 1 for name in PARTS if name in options}
    return replace(
        arm,
        recipe=replace(arm.recipe, iterations=iterations, steps=STEPS, options=options),
        grid=arm.grid[: 2 if first else 1],
        prompts=PROMPTS if first else 1,
        seeds=1,
        tuned_on=1,
        tuned_for=min(ITERATIONS, arm.tuned_for),
    )
