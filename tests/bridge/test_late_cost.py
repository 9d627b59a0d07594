"""What the last iterations with the noise of the late steps alone take: calls, graphs, the plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .sabotage import Calls, interrupt, out_of_memory
from .test_coarse import masked
from .test_late_part import ALL, FEW, LATE, PULLED, counted, parted, steps_of
from .test_redraw import plans


@pytest.mark.parametrize(("late", "before"), [(3, 1), (4, 0)])
def test_it_runs_the_late_steps_alone_but_for_its_first_iteration(
    models: dict[str, Any], late: int, before: int
) -> None:
    trajectory, calls = counted(models, late, check_gradient=False)
    assert steps_of(trajectory) == [ALL] * 5 and trajectory.redraw is None
    assert calls == (before + 1) * ALL + before * ALL + late * (LATE + PULLED)
    assert trajectory.meta["late_iterations"] == late and trajectory.meta["late_from"] == before


@pytest.mark.parametrize("graphs", ["recompute", "store"])
def test_kept_graphs_save_the_recomputation_of_its_steps_too(
    models: dict[str, Any], graphs: str
) -> None:
    changes = {"check_gradient": False, "graph_memory": graphs}
    calls = [counted(models, 4, iterations, **changes)[1] for iterations in (2, 3, 4)]
    each = LATE + (PULLED if graphs == "recompute" else 0)
    assert [calls[1] - calls[0], calls[2] - calls[1]] == [each, each]


@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_kept_graphs_and_those_made_again_give_the_same_run(
    models: dict[str, Any], kind: str
) -> None:
    inputs = masked() if kind == "masked" else {}
    runs = [parted(models, 3, graph_memory=graphs, **inputs) for graphs in ("store", "recompute")]
    assert torch.equal(runs[0].trajectory.last_noise, runs[1].trajectory.last_noise)
    assert torch.equal(runs[0].image, runs[1].image)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"late_iterations": 9},
        {"late_iterations": 9, "gradient_mode": "spread k", "gradient_steps": 4},
        {"late_iterations": 1, "gradient_mode": "spread k", "gradient_steps": 4},
        {"optimize_steps": FEW},
        {"optimize_steps": FEW, "late_iterations": 9},
        {"optimize_steps": FEW, "late_iterations": 1, "finish_iterations": 2},
        {"optimize_steps": FEW, "late_iterations": 2, "finish_iterations": 1},
        {"optimize_steps": FEW, "gradient_mode": "last k", "gradient_steps": 1},
        {"graph_memory": "store", "late_iterations": 9},
        {"screen_seeds": 3, "check_gradient": False},
    ],
    ids=str,
)
def test_the_planned_cost_is_what_the_run_takes(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen = plans(monkeypatch)
    redraw = parted(models, **{"late": 2, "iterations": 3, **renamed(changes)}).trajectory.redraw
    same = redraw is not None and redraw.winners == (0,)  # then one picture is both
    assert seen[0]._done == pytest.approx(seen[0]._total - (ALL if same else 0))


def renamed(changes: dict[str, Any]) -> dict[str, Any]:
    return {{"late_iterations": "late"}.get(name, name): each for name, each in changes.items()}


@pytest.mark.parametrize("begun", [0, 1])
def test_so_it_is_of_a_run_that_goes_on(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    part = parted(models, begun, 2).trajectory
    seen = plans(monkeypatch)
    parted(models, 1, 4, resume=part)
    assert seen[0]._done == seen[0]._total


def test_out_of_memory_in_it_goes_on_with_less(models: dict[str, Any]) -> None:
    whole = parted(models, 3, graph_memory="auto", check_gradient=False).trajectory
    at = 2 * ALL + ALL + LATE + 1
    calls = Calls(models["model"], at, out_of_memory)
    changes = {"graph_memory": "auto", "check_gradient": False}
    short = parted({**models, "model": calls.model}, 3, **changes).trajectory
    assert calls.count > at and torch.equal(short.last_noise, whole.last_noise)
    assert len(short.records) == 5


def test_a_cancel_in_it_is_a_cancel(models: dict[str, Any]) -> None:
    import comfy.model_management as management

    calls = Calls(models["model"], ALL + PULLED + LATE + 1, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        parted({**models, "model": calls.model}, 4, check_gradient=False)
