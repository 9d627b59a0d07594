"""DNO as the experiments run it: the core's own loop, with everything that may vary as data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from comfyui_dno import dno_core
from comfyui_dno.dno_core import NonFinite, Regularizer, Settings, optimize

from .curves import Snapshot, snapshot
from .setting import Bench


def dno(
    bench: Bench,
    learning_rate: float,
    iterations: int,
    *,
    regularizer: Mapping[str, Any],
    optimizer: str = "adam",
    estimator: Mapping[str, Any] | None = None,
    clip: float = 1.0,
) -> Iterator[Snapshot]:
    """`regularizer` and `estimator`: {"class": name in dno_core, and its arguments}.

    The gradient check of the first iteration is left out: it would be charged to every arm alike.
    A run whose numbers overflow ends there; what came before counts.
    """
    keeper = make(regularizer)
    settings = settings_of(learning_rate, keeper, clip)
    run = optimize(
        bench.problem,
        bench.z,
        lambda index: settings,
        seed=bench.key,
        optimizer=optimizer,
        estimator=None if estimator is None else make(estimator),
        regularizer=keeper,
        check_tolerance=None,
    )
    try:
        for iteration in itertools.islice(run, iterations + 1):
            yield snapshot(iteration)
    except NonFinite:
        return


def settings_of(learning_rate: float, keeper: Regularizer, clip: float = 1.0) -> Settings:
    """Settings of a climb of one term, which stay as they are."""
    return Settings(learning_rate, keeper.gamma, (1.0,), clip)


def make(description: Mapping[str, Any]) -> Any:
    """The object of dno_core that {"class": name, argument: value, ...} describes."""
    arguments = dict(description)
    return getattr(dno_core, arguments.pop("class"))(**arguments)
