"""The last iterations with the noise of the late steps alone: what moves, what is run, what comes
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.dno_core import Term, Trajectory, late_begin, load_trajectory, save_trajectory
from comfyui_dno.dno_core.trajectories.redraw import WINNER

from .runs import stock
from .sabotage import Calls, out_of_memory
from .test_coarse import masked
from .test_redraw import asked, drawn, run
from .test_resume import assert_equal

FEW, ALL = 3, 6
BEGIN = late_begin(ALL)
HELD, LATE = BEGIN + 1, ALL - BEGIN
PULLED = LATE - 1
"""Steps of a late iteration that are differentiated: not the first, where no late noise is in."""


def parted(models: dict[str, Any], late: int, iterations: int = 4, **changes: Any) -> Any:
    """In all steps from the first iteration on, unless `optimize_steps` is given."""
    values = {"steps": ALL, "optimize_steps": 0, "late_iterations": late, "iterations": iterations}
    return run(models, **values | changes)


def steps_of(trajectory: Trajectory) -> list[int]:
    return [record.steps for record in trajectory.records]


def counted(models: dict[str, Any], *args: Any, **changes: Any) -> tuple[Trajectory, int]:
    calls = Calls(models["model"], -1)
    result = parted({**models, "model": calls.model}, *args, **changes)
    return result.trajectory, calls.count


def noises(models: dict[str, Any], iterations: int, **changes: Any) -> list[torch.Tensor]:
    """The noise of every iteration of one run."""
    from comfyui_dno.nodes import climb

    found: list[torch.Tensor] = []
    optimize = climb.optimize

    def noting(*args: Any, **options: Any) -> Any:
        for iteration in optimize(*args, **options):
            found.append(iteration.z)
            yield iteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(climb, "optimize", noting)
        parted(models, changes.pop("late"), iterations, **changes)
    return found


@pytest.mark.parametrize(("late", "before"), [(1, 3), (2, 2), (9, 0)])
def test_so_many_updates_move_the_late_noises_alone(
    models: dict[str, Any], late: int, before: int
) -> None:
    found = noises(models, 4, late=late, batch=2)
    for index, (one, following) in enumerate(zip(found, found[1:], strict=False)):
        moved = (one != following).flatten(1).any(1).tolist()
        held = HELD if index >= before else 0
        assert moved == [False] * held + [True] * (ALL - held)


def test_until_then_nothing_is_other_than_without_it(models: dict[str, Any]) -> None:
    plain, late = (noises(models, 4, late=count) for count in (0, 2))
    for index in range(3):
        assert torch.equal(plain[index], late[index])
    assert not torch.equal(plain[3][:HELD], late[3][:HELD])
    assert torch.equal(plain[3][HELD:], late[3][HELD:]), "of the same gradient, number by number"


@pytest.mark.parametrize("kind", ["plain", "masked", "spread"])
def test_its_pictures_are_those_of_whole_runs(models: dict[str, Any], kind: str) -> None:
    """Checked in its first iteration: the gradient is the slope along the late noises."""
    import nodes

    changes: dict[str, Any] = {
        "plain": {"batch": 2},
        "masked": masked(),
        "spread": {"gradient_mode": "spread k", "gradient_steps": 3},
    }[kind]
    result = parted(models, 4, **changes)
    trajectory = result.trajectory
    assert trajectory.meta["gradient_checked"]
    assert ("gradient_cosine" in trajectory.meta) == (kind == "spread")
    assert min(trajectory.best) > 0
    first = stock(asked(models, steps=ALL, **changes))["samples"]
    assert torch.equal(trajectory.latents[0], first)
    last = drawn(models, trajectory.last_noise, steps=ALL, **changes)
    assert torch.equal(trajectory.latents[4], last)
    best = drawn(models, trajectory.best_noise, steps=ALL, **changes)
    assert torch.equal(result.latent["samples"], best)
    decoded = nodes.VAEDecode().decode(models["vae"], {"samples": best})[0]
    assert torch.equal(result.image, decoded)


@pytest.mark.parametrize(
    ("late", "finish", "taken", "late_from"),
    [
        (2, 0, [FEW, FEW, ALL, ALL, ALL], 2),
        (1, 3, [FEW, ALL, ALL, ALL, ALL], 3),
        (9, 2, [ALL] * 5, 0),
    ],
)
def test_after_few_steps_it_takes_them_all(
    models: dict[str, Any], late: int, finish: int, taken: list[int], late_from: int
) -> None:
    changes = {"optimize_steps": FEW, "finish_iterations": finish, "check_gradient": False}
    trajectory, calls = counted(models, late, **changes)
    assert steps_of(trajectory) == taken
    assert trajectory.meta["late_from"] == late_from
    updates = 4 - late_from
    early = sum(2 * steps for steps in taken[:late_from])
    first_picture = ALL if taken[0] == FEW else 0
    assert calls == early + ALL + updates * (LATE + PULLED) + first_picture
    found = noises(models, 4, late=late, **changes)
    for one in found[late_from + 1 :]:
        assert torch.equal(one[:HELD], found[late_from][:HELD])
    redraw = trajectory.redraw
    assert redraw is not None and min(redraw.winners) >= taken.index(ALL)
    winner = drawn(models, trajectory.best_noise, steps=ALL)
    assert torch.equal(redraw.latents[WINNER], winner)
    assert torch.equal(trajectory.latents[4], drawn(models, trajectory.last_noise, steps=ALL))


@pytest.mark.parametrize(
    "changes",
    [
        {"eta": 0.0},
        {"steps": 2},
        {"terms": (Term(rewards.create("jpeg_compressibility")),)},
    ],
    ids=["eta 0", "two steps", "probes"],
)
def test_where_nothing_would_be_left_to_move_it_means_nothing(
    models: dict[str, Any], changes: dict[str, Any]
) -> None:
    plain, late = (parted(models, count, 2, **changes).trajectory for count in (0, 2))
    assert torch.equal(plain.last_noise, late.last_noise)
    assert [each.scores for each in plain.records] == [each.scores for each in late.records]
    assert "late_from" not in late.meta


def test_of_three_steps_one_noise_is_late(models: dict[str, Any]) -> None:
    found = noises(models, 2, late=1, steps=3)
    assert torch.equal(found[1][:2], found[2][:2]) and not torch.equal(found[1][2], found[2][2])


PARTS = {"optimize_steps": FEW, "finish_iterations": 3, "batch": 2, "check_gradient": False}
TAKEN = [FEW, FEW, ALL, ALL, ALL, ALL]


def part_of_a_run(models: dict[str, Any], taken: int) -> Trajectory:
    """So many iterations of `parted(models, 2, 5)`, until memory ran out."""
    before = sum(2 * steps for steps in TAKEN[: min(taken, 3)])
    late = 0 if taken <= 3 else ALL + LATE * (taken - 4) + PULLED * (taken - 3)
    calls = Calls(models["model"], before + late, out_of_memory, on=True)
    found = parted({**models, "model": calls.model}, 2, 5, **PARTS).trajectory
    assert steps_of(found) == TAKEN[:taken] and "memory" in found.stop_reason
    return found


@pytest.fixture(scope="module")
def whole(models: dict[str, Any]) -> Any:
    """A run of three parts in one go."""
    with torch.inference_mode():
        return parted(models, 2, 5, **PARTS)


@pytest.mark.parametrize("taken", [2, 3, 4, 5])
def test_resumed_in_any_part_it_is_the_run_in_one_go(
    models: dict[str, Any], whole: Any, taken: int, tmp_path: Path
) -> None:
    assert steps_of(whole.trajectory) == TAKEN and whole.trajectory.meta["late_from"] == 3
    save_trajectory(part_of_a_run(models, taken), tmp_path / "run")
    part = load_trajectory(tmp_path / "run")
    resumed = parted(models, 2, 5, resume=part, **PARTS)
    assert_equal(resumed.trajectory, whole.trajectory)
    assert torch.equal(resumed.image, whole.image)
    assert torch.equal(resumed.latent["samples"], whole.latent["samples"])


@pytest.mark.parametrize("late", [0, 1, 5])
def test_a_run_that_has_begun_it_stays_in_it(models: dict[str, Any], late: int) -> None:
    part = parted(models, 2, 3).trajectory
    resumed, calls = counted(models, late, 5, resume=part, check_gradient=False)
    assert resumed.meta["late_from"] == part.meta["late_from"] == 1
    assert torch.equal(resumed.last_noise[:HELD], part.last_noise[:HELD])
    assert calls == ALL + 2 * (LATE + PULLED)


def test_more_late_iterations_than_are_left_begin_with_the_next(models: dict[str, Any]) -> None:
    part = parted(models, 0, 2).trajectory
    assert "late_from" not in part.meta
    resumed = parted(models, 9, 4, resume=part).trajectory
    assert resumed.meta["late_from"] == 3 and len(resumed.records) == 5
    whole = parted(models, 1, 4).trajectory
    assert torch.equal(resumed.last_noise, whole.last_noise)
