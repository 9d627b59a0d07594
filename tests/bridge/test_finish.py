"""The last iterations in all steps: a climb that ends on the picture that it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Term, Trajectory, load_trajectory, save_trajectory
from comfyui_dno.dno_core.trajectories.redraw import FIRST, WINNER
from comfyui_dno.rewards.base import PixelReward

from .runs import stock
from .sabotage import Calls, interrupt, out_of_memory
from .test_redraw import asked, backfiring_reward, drawn, run
from .test_resume import assert_equal

FEW, ALL = 2, 4
"""Steps of the first part, and of the last: those of `asked`."""


def steps_of(trajectory: Trajectory) -> list[int]:
    return [record.steps for record in trajectory.records]


def finished(models: dict[str, Any], last: int, iterations: int = 4, **changes: Any) -> Any:
    return run(models, iterations=iterations, finish_iterations=last, **changes)


@pytest.mark.parametrize(("last", "first_part"), [(1, 3), (2, 2), (3, 1), (4, 0), (9, 0)])
def test_so_many_updates_are_made_in_all_steps_and_those_before_in_few(
    models: dict[str, Any], last: int, first_part: int
) -> None:
    calls = Calls(models["model"], -1)
    result = finished({**models, "model": calls.model}, last, check_gradient=False)
    trajectory = result.trajectory
    assert steps_of(trajectory) == [FEW] * first_part + [ALL] * (5 - first_part)
    assert trajectory.meta["finish_iterations"] == last
    forwards, sweeps = sum(steps_of(trajectory)), sum(steps_of(trajectory)[:-1])
    first_picture = ALL if first_part else 0
    assert calls.count == forwards + sweeps + first_picture, "the winner is not sampled again"
    assert trajectory.redraw is not None and trajectory.redraw.winners == trajectory.best
    assert first_part <= trajectory.best[0]


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_its_pictures_are_those_of_the_full_schedule(models: dict[str, Any], eta: float) -> None:
    import nodes

    changes = {"batch": 2, "eta": eta}
    result = finished(models, 2, **changes)
    trajectory, redraw = result.trajectory, result.trajectory.redraw
    assert redraw is not None and all(redraw.taken) and min(redraw.winners) >= 2
    assert torch.equal(trajectory.latents[4], drawn(models, trajectory.last_noise, **changes))
    winner = drawn(models, trajectory.best_noise, **changes)
    assert torch.equal(trajectory.take(trajectory.latents, trajectory.best), winner)
    assert torch.equal(redraw.latents[WINNER], winner)
    assert torch.equal(result.latent["samples"], winner)
    decoded = nodes.VAEDecode().decode(models["vae"], {"samples": winner})[0]
    assert torch.equal(result.image, decoded)
    at_winners = [trajectory.records[place].scores[0][i] for i, place in enumerate(redraw.winners)]
    assert redraw.after[0] == pytest.approx(at_winners, rel=1e-6)


def test_the_first_picture_is_ksamplers_own_although_the_run_drew_it_in_few_steps(
    models: dict[str, Any],
) -> None:
    for last in (2, 4):
        trajectory = finished(models, last).trajectory
        first = stock(asked(models))["samples"]
        assert torch.equal(trajectory.redraw.latents[FIRST], first)
        assert torch.equal(trajectory.latents[0], first) == (last == 4)


def test_every_image_of_a_batch_is_taken_from_its_own_best_iteration(
    models: dict[str, Any],
) -> None:
    calls = []

    def score(images: Tensor) -> Tensor:
        calls.append(1)
        peak = torch.arange(len(images)) == len(calls) - 3
        return images.flatten(1).mean(1) + peak

    terms = (Term(PixelReward("one after another", "unit", 1.0, score)),)
    changes = {"batch": 3, "terms": terms, "check_gradient": False}
    trajectory = finished(models, 3, **changes).trajectory
    assert trajectory.best_noise_at == trajectory.redraw.winners == (2, 3, 4)
    expected = trajectory.take(trajectory.latents, (2, 3, 4))
    assert torch.equal(trajectory.redraw.latents[WINNER], expected)
    assert torch.equal(drawn(models, trajectory.best_noise, **changes), expected)


def test_the_better_of_the_winner_and_the_first_picture_is_returned(
    models: dict[str, Any],
) -> None:
    terms = (backfiring_reward(5),)  # as often as the run scores; the judge turns it round
    result = finished(models, 2, terms=terms, check_gradient=False)
    redraw = result.trajectory.redraw
    assert redraw is not None and redraw.winners[0] >= 2
    assert redraw.taken == (False,) and result.trajectory.best == (0,)
    assert torch.equal(result.latent["samples"], stock(asked(models))["samples"])
    assert any("optimize_steps or finish_iterations" in w for w in result.trajectory.warnings)


def test_the_first_part_is_what_a_run_in_few_steps_alone_is(models: dict[str, Any]) -> None:
    parted, few = (finished(models, last).trajectory for last in (2, 0))
    for index in range(2):
        assert parted.records[index].scores == few.records[index].scores
    assert parted.records[2].noise_rms == few.records[2].noise_rms
    assert parted.records[2].scores != few.records[2].scores
    assert steps_of(few) == [FEW] * 5


@pytest.mark.parametrize("count", [0, 4, 9])
def test_where_all_iterations_take_all_steps_it_means_nothing(
    models: dict[str, Any], count: int
) -> None:
    plain, told = (finished(models, last, 2, optimize_steps=count).trajectory for last in (0, 1))
    assert told.redraw is None and steps_of(told) == [ALL] * 3
    assert [each.scores for each in told.records] == [each.scores for each in plain.records]


def part_of_a_run(models: dict[str, Any], cut: str, **changes: Any) -> Trajectory:
    """What `finished(models, 2)` is resumed from."""
    if cut == "first part":
        calls = Calls(models["model"], 2 * FEW + 1, out_of_memory)
        changes |= {"check_gradient": False}
        return finished({**models, "model": calls.model}, 2, **changes).trajectory
    last, iterations = {"all of the first part": (0, 1), "last part": (1, 3)}[cut]
    return finished(models, last, iterations, **changes).trajectory


@pytest.mark.parametrize(
    ("cut", "taken"),
    [
        ("first part", [FEW]),
        ("all of the first part", [FEW, FEW]),
        ("last part", [FEW, FEW, ALL, ALL]),
    ],
)
def test_resumed_in_either_part_it_is_the_run_in_one_go(
    models: dict[str, Any], cut: str, taken: list[int], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"batch": 2, "gradient_mode": "spread k", "gradient_steps": 2}
    whole = finished(models, 2, **changes)
    part = part_of_a_run(models, cut, **changes)
    assert steps_of(part) == taken
    save_trajectory(part, tmp_path / "run")
    resumed = finished(models, 2, resume=load_trajectory(tmp_path / "run"), **changes)
    assert_equal(resumed.trajectory, whole.trajectory)
    assert torch.equal(resumed.image, whole.image)
    assert torch.equal(resumed.latent["samples"], whole.latent["samples"])


@pytest.mark.parametrize("last", [0, 1, 5])
def test_a_run_that_has_begun_its_last_part_stays_in_it(models: dict[str, Any], last: int) -> None:
    part = finished(models, 1, 3).trajectory
    assert steps_of(part) == [FEW, FEW, ALL, ALL]
    calls = Calls(models["model"], -1)
    resumed = finished({**models, "model": calls.model}, last, 5, resume=part).trajectory
    assert steps_of(resumed) == [FEW, FEW, *[ALL] * 4]
    assert calls.count == 3 * ALL + 2 * ALL + ALL, "and the first picture"


def test_more_last_iterations_than_are_left_begin_with_the_next(models: dict[str, Any]) -> None:
    part = finished(models, 0, 2).trajectory
    resumed = finished(models, 9, 4, resume=part).trajectory
    assert steps_of(resumed) == [FEW] * 3 + [ALL] * 2


def test_a_run_that_ends_before_its_last_part_is_drawn_again_as_without_one(
    models: dict[str, Any],
) -> None:
    calls = Calls(models["model"], 3 * (2 * FEW), out_of_memory)
    changes = {"check_gradient": False}
    broken = finished({**models, "model": calls.model}, 1, 9, **changes).trajectory
    assert steps_of(broken) == [FEW] * 3 and "Out of memory" in broken.stop_reason
    assert broken.redraw is not None
    assert torch.equal(broken.redraw.latents[WINNER], drawn(models, broken.best_noise))


def test_a_cancel_in_the_last_part_is_a_cancel(models: dict[str, Any]) -> None:
    import comfy.model_management as management
    import folder_paths

    before = set(Path(folder_paths.get_temp_directory()).glob("dno_cancelled_*.png"))
    calls = Calls(models["model"], 2 * 2 * FEW + ALL + 2, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        finished({**models, "model": calls.model}, 2, check_gradient=False)
    kept = set(Path(folder_paths.get_temp_directory()).glob("dno_cancelled_*.png")) - before
    assert len(kept) == 1
