"""How an experiment is written down: arms, the trials that tune them, and what is compared."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import NAMES
from .cases import BATCH, Case, batches, cases, development_prompts, test_prompts
from .setting import CFG, STEPS

ITERATIONS = 15
TRIALS = 4
DEVELOPMENT_PROMPTS = 6


@dataclass(frozen=True)
class Recipe:
    """A method with all its settings but the tuned one, as plain data.

    `method` names a function "module.function" of this package:
    `function(bench, knob, iterations, **options) -> Iterator[Snapshot]`, which yields the
    picture it starts from and then one snapshot an iteration.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "clip_score"
    reward_options: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 1.0
    steps: int = STEPS
    cfg: float = CFG
    iterations: int = ITERATIONS


@dataclass(frozen=True)
class Arm:
    """A recipe in an experiment. `grid`: the trials of its knob on the development prompts; one
    value is no trial. `like`: the arm whose knob it takes instead. `prompts` x `seeds` test cases;
    trials are run on `tuned_on` development prompts, for `tuned_for` iterations (0: as many as the
    tests) and with `trial_options` in place of the recipe's. `batch` cases are a unit. `rank` 0 is
    run first."""

    name: str
    label: str
    recipe: Recipe
    grid: tuple[float, ...] = ()
    like: str = ""
    prompts: int = 24
    seeds: int = 1
    tuned_on: int = DEVELOPMENT_PROMPTS
    tuned_for: int = 0
    trial_options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = BATCH
    rank: int = 0


@dataclass(frozen=True)
class Contrast:
    """`arm` minus `against`, within pairs of the same prompt and seed."""

    arm: str
    against: str
    primary: bool = False


@dataclass(frozen=True)
class Figure:
    title: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    figures: tuple[Figure, ...]
    extra: Callable[[Any], str] | None = None
    """A section of the page that only this experiment has, from its `running.Results`."""
    trials: int = TRIALS
    measure: Callable[[Path], None] | None = None
    """What it measures besides climbs: writes its files to a folder unless they are there."""

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Unit:
    """The work that is done in one go: a recipe, its knob, and a batch of cases."""

    recipe: Recipe
    knob: float
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """The same work has the same name in every experiment, and is done once."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
        return f"{self.recipe.method.split('.')[-1]}_{digest}"


def trials(arm: Arm) -> dict[float, list[Unit]]:
    """Knob -> the units of its trial on the development prompts."""
    tried = cases(development_prompts(), arm.tuned_on, 1)
    recipe = replace(
        arm.recipe,
        iterations=arm.tuned_for or arm.recipe.iterations,
        options={**arm.recipe.options, **arm.trial_options},
    )
    return {
        knob: [Unit(recipe, knob, batch) for batch in batches(tried, arm.batch)]
        for knob in (arm.grid if len(arm.grid) > 1 else ())
    }


def tests(arm: Arm, knob: float) -> list[Unit]:
    run = cases(test_prompts(), arm.prompts, arm.seeds)
    return [Unit(arm.recipe, knob, batch) for batch in batches(run, arm.batch)]


def load(name: str) -> Experiment:
    if name not in NAMES:
        raise ValueError(f"There is no experiment '{name}'. Use one of {', '.join(NAMES)}, or all.")
    return importlib.import_module(f".{name}", __package__).EXPERIMENT
