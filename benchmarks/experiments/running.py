"""From an experiment to its curves: the trials, the choice of every knob, the test runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .curves import Curve
from .plan import Arm, Experiment, tests, trials
from .units import Units


@dataclass(frozen=True)
class Trial:
    """A knob tried on the development prompts: the mean objective of what would be returned."""

    knob: float
    gain: float
    reward: float


@dataclass(frozen=True)
class Tuned:
    """The trials of an arm (none where it borrows its knob) and the knob that won."""

    knob: float
    trials: tuple[Trial, ...]

    @property
    def at_the_edge(self) -> bool:
        knobs = [trial.knob for trial in self.trials]
        return len(knobs) > 1 and self.knob in (min(knobs), max(knobs))


@dataclass(frozen=True)
class Results:
    """What is there of an experiment: arms whose units are missing are left out. `folder` holds
    what it measured besides."""

    experiment: Experiment
    tuned: dict[str, Tuned]
    curves: dict[str, list[Curve]]
    folder: Path = Path()

    @property
    def missing(self) -> list[str]:
        return [arm.name for arm in self.experiment.arms if arm.name not in self.curves]


def do(experiment: Experiment, units: Units, rank: int) -> dict[str, str]:
    """Run the arms of one rank: all their trials, then their tests. Returns what failed."""
    arms = [arm for arm in experiment.arms if arm.rank == rank]
    failed = units.do(unit for arm in arms for found in trials(arm).values() for unit in found)
    wanted = []
    for arm in arms:
        tuned = choose(experiment, arm, units)
        if tuned is not None:
            wanted += tests(arm, tuned.knob)
    return {**failed, **units.do(wanted)}


def choose(experiment: Experiment, arm: Arm, units: Units) -> Tuned | None:
    """The knob with the highest mean reward returned on the development prompts.

    The criterion is the same for all, and was fixed before the first run: the objective of the
    iteration that DNO Sampler would return (the best one with typical noise) at the end of the
    budget; of equals the smaller knob. None while trials are missing.
    """
    if arm.like:
        other = choose(experiment, experiment.arm(arm.like), units)
        return None if other is None else Tuned(other.knob, ())
    if len(arm.grid) == 1:
        return Tuned(arm.grid[0], ())
    tried = []
    for knob, found in trials(arm).items():
        curves = units.curves(found)
        if curves is None:
            return None
        tried.append(Trial(knob, mean_gain(curves), mean_reward(curves)))
    best = max(sorted(tried, key=lambda t: t.knob), key=lambda trial: trial.reward)
    return Tuned(best.knob, tuple(tried))


def mean_reward(curves: Sequence[Curve]) -> float:
    return sum(curve.objective[curve.returned] for curve in curves) / len(curves)


def mean_gain(curves: Sequence[Curve]) -> float:
    start = sum(curve.objective[0] for curve in curves) / len(curves)
    return mean_reward(curves) - start


def gather(experiment: Experiment, units: Units) -> Results:
    tuned, curves = {}, {}
    for arm in experiment.arms:
        choice = choose(experiment, arm, units)
        if choice is None:
            continue
        tuned[arm.name] = choice
        found = units.curves(tests(arm, choice.knob))
        if found is not None:
            curves[arm.name] = found
    return Results(experiment, tuned, curves, units.results)
