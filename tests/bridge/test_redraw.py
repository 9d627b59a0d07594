"""Fewer steps while it climbs, all of them for what is returned: the winner is drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno import rewards
from comfyui_dno.dno_core import Term, Trajectory, load_trajectory, save_trajectory
from comfyui_dno.dno_core.trajectories.continuation import NotTheSameRun
from comfyui_dno.dno_core.trajectories.redraw import FIRST, WINNER
from comfyui_dno.rewards.base import PixelReward

from .runs import inside, request, stock, wavy_reward
from .sabotage import Calls, interrupt, out_of_memory

STEPS = {"steps": 4, "optimize_steps": 2, "learning_rate": 0.05, "graph_memory": "recompute"}


def asked(models: dict[str, Any], **changes: Any) -> Any:
    return request(**{**models, **STEPS, "terms": (wavy_reward(),), **changes})


def run(models: dict[str, Any], **changes: Any) -> Any:
    from comfyui_dno.nodes import optimization

    return optimization.run(asked(models, **changes))


def drawn(models: dict[str, Any], noise: Tensor, **changes: Any) -> Tensor:
    """The LATENT of a noise on the full schedule, in a run that has never heard of fewer steps."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> Tensor:
        return to_latent(problem.noise_map.forward(noise.to(z)).final)

    return inside(asked(models, **changes, optimize_steps=0), work)


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_the_winner_and_the_first_picture_are_those_of_the_full_schedule(
    models: dict[str, Any], eta: float
) -> None:
    import nodes

    changes = {"batch": 2, "eta": eta}
    result = run(models, **changes)
    trajectory, redraw = result.trajectory, result.trajectory.redraw
    assert redraw is not None and all(redraw.taken) and max(redraw.winners) > 0
    first = stock(asked(models, **changes))["samples"]
    assert torch.equal(redraw.latents[FIRST], first), "KSampler's own picture"
    assert not torch.equal(trajectory.latents[0], first), "the run itself took fewer steps"
    winner = drawn(models, trajectory.best_noise, **changes)
    assert torch.equal(redraw.latents[WINNER], winner)
    assert torch.equal(result.latent["samples"], winner)
    decoded = nodes.VAEDecode().decode(models["vae"], {"samples": winner})[0]
    assert torch.equal(result.image, decoded)
    assert torch.equal(redraw.images[WINNER], (decoded * 255).to(torch.uint8))
    term = wavy_reward()
    for latent, scores in ((first, redraw.before), (winner, redraw.after)):
        image = nodes.VAEDecode().decode(models["vae"], {"samples": latent})[0].movedim(-1, 1)
        expected = term.reward.score(image, None)
        torch.testing.assert_close(torch.tensor(scores[0]), expected, rtol=1e-6, atol=1e-7)


def test_every_gain_in_it_is_that_of_full_quality(models: dict[str, Any]) -> None:
    from comfyui_dno.nodes.report import redraw_lines, summary

    trajectory = run(models).trajectory
    numbers, redraw = summary(trajectory), trajectory.redraw
    assert redraw is not None
    assert numbers["reward_before"] == redraw.before[0][0]
    assert numbers["reward_after"] == redraw.after[0][0] > redraw.before[0][0]
    in_run = [trajectory.records[i].scores[0][0] for i in (0, trajectory.best[0])]
    assert numbers["redraw"]["reward_before_in_run"] == in_run[0]
    assert numbers["redraw"]["reward_after_in_run"] == in_run[1]
    assert in_run[0] != numbers["reward_before"]
    loop_seconds = sum(record.seconds for record in trajectory.records)
    assert numbers["seconds"] == loop_seconds + redraw.seconds
    (line,) = redraw_lines(trajectory)
    assert f"{redraw.after[0][0]:.4g}" in line and f"{in_run[1]:.4g}" in line


@pytest.mark.parametrize("count", [0, 4, 9])
def test_with_all_steps_nothing_is_drawn_again(models: dict[str, Any], count: int) -> None:
    calls = Calls(models["model"], -1)
    result = run({**models, "model": calls.model}, optimize_steps=count, check_gradient=False)
    assert result.trajectory.redraw is None
    assert calls.count == 3 * 4 + 2 * 4, "three forward runs and two sweeps"


def backfiring_reward(good: int) -> Term:
    """Climbed for so many calls; then what was good is bad."""
    calls = []

    def score(images: Tensor) -> Tensor:
        calls.append(1)
        return images.flatten(1).mean(1) * (1.0 if len(calls) <= good else -1.0)

    return Term(PixelReward("backfiring", "unit", 1.0, score))


def test_a_winner_that_is_worse_at_full_quality_gives_way_to_the_first_picture(
    models: dict[str, Any],
) -> None:
    from comfyui_dno.nodes.report import redraw_lines, summary

    terms = (backfiring_reward(3),)
    result = run(models, terms=terms, check_gradient=False)
    trajectory, redraw = result.trajectory, result.trajectory.redraw
    assert redraw is not None and redraw.winners[0] > 0
    assert redraw.after[0][0] < redraw.before[0][0]
    assert redraw.taken == (False,) and trajectory.best == (0,)
    assert torch.equal(result.latent["samples"], stock(asked(models))["samples"])
    numbers = summary(trajectory)
    assert numbers["reward_after"] == numbers["reward_before"] == redraw.before[0][0]
    assert any("is below the first picture, which is returned" in w for w in trajectory.warnings)
    assert "is below the first picture" in redraw_lines(trajectory)[-1]


def test_a_screened_and_resumed_run_is_drawn_again_as_one_in_one_go(
    models: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"batch": 3, "screen_seeds": 6}
    whole = run(models, iterations=3, **changes)
    assert len(set(whole.trajectory.meta["screened_seeds"])) > 1, "chosen image by image"
    save_trajectory(run(models, iterations=1, **changes).trajectory, tmp_path / "run")
    part = load_trajectory(tmp_path / "run")
    resumed = run(models, iterations=3, resume=part, **changes)
    redraws = [each.trajectory.redraw for each in (whole, resumed)]
    assert replace(redraws[0], seconds=0, latents=0, images=0) == replace(
        redraws[1], seconds=0, latents=0, images=0
    )
    for name in ("latents", "images"):
        assert torch.equal(getattr(redraws[0], name), getattr(redraws[1], name))
    assert torch.equal(whole.image, resumed.image)


def test_a_finished_run_gives_its_redrawn_picture_again(models: dict[str, Any]) -> None:
    calls = Calls(models["model"], -1)
    done = run(models)
    again = run({**models, "model": calls.model}, resume=done.trajectory)
    assert calls.count == 0
    assert torch.equal(again.latent["samples"], done.latent["samples"])
    turned = (replace(wavy_reward(), weight=-1.0),)
    other = run({**models, "model": calls.model}, resume=done.trajectory, terms=turned)
    assert other.trajectory.best != done.trajectory.best
    assert other.trajectory.redraw is None, "under other weights another iteration is the best"


@pytest.mark.parametrize("name", ["optimize_steps", "loop_decoder"])
def test_a_run_goes_on_only_with_the_steps_and_decoder_it_was_begun_with(
    models: dict[str, Any], name: str
) -> None:
    part = run(models).trajectory
    other = {"optimize_steps": 3, "loop_decoder": "tiny VAE"}[name]
    with pytest.raises(NotTheSameRun, match=f"begun with {name} .* Set {name} to"):
        run(models, resume=part, iterations=4, **{name: other})
    older = replace(part, meta={k: v for k, v in part.meta.items() if k != name})
    if name == "optimize_steps":
        with pytest.raises(NotTheSameRun, match="begun with optimize_steps 0"):
            run(models, resume=older, iterations=4)


def loop_calls(models: dict[str, Any]) -> int:
    """Denoiser calls of a run before its redraw, which is two full schedules."""
    calls = Calls(models["model"], -1)
    run({**models, "model": calls.model}, check_gradient=False)
    return calls.count - 2 * STEPS["steps"]


@pytest.mark.parametrize("late", [1, 6])
def test_out_of_memory_in_the_redraw_leaves_the_loop_s_own_best(
    models: dict[str, Any], late: int
) -> None:
    calls = Calls(models["model"], loop_calls(models) + late, out_of_memory)
    result = run({**models, "model": calls.model}, check_gradient=False)
    trajectory = result.trajectory
    assert trajectory.redraw is None and len(trajectory.records) == 3
    assert "2 iterations" in trajectory.stop_reason or "iterations" in trajectory.stop_reason
    assert "could not be drawn again with all 4 steps" in trajectory.warnings[-1]
    assert "Out of memory. Use a smaller image" in trajectory.warnings[-1]
    expected = trajectory.take(trajectory.latents, trajectory.best)
    assert torch.equal(result.latent["samples"], expected)


@pytest.fixture
def kept(comfy: object) -> Iterator[list[Path]]:
    """The pictures that a cancel leaves behind."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    before, found = set(folder.glob("dno_cancelled_*.png")), []
    yield found
    found += sorted(set(folder.glob("dno_cancelled_*.png")) - before)
    assert len(found) == 1


def test_a_cancel_in_the_redraw_is_a_cancel_and_keeps_the_best_picture(
    models: dict[str, Any], kept: list[Path]
) -> None:
    import comfy.model_management as management

    calls = Calls(models["model"], loop_calls(models) + 1, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        run({**models, "model": calls.model}, check_gradient=False)
    assert calls.count == calls.at + 1, "at the next step"


def test_pick_iteration_gives_what_is_returned_at_full_quality(models: dict[str, Any]) -> None:
    from comfyui_dno.nodes.trajectory_nodes import described, frames_of, pick, scores_of

    trajectory: Trajectory = run(models, iterations=3).trajectory
    redraw = trajectory.redraw
    assert redraw is not None
    expected = {
        -1: (trajectory.result_images, redraw.scores, "drawn at full quality"),
        0: (redraw.images[FIRST], redraw.before, "drawn at full quality"),
        1: (trajectory.images[1], trajectory.records[1].scores, "as it was in the run"),
    }
    for index, (images, scores, said) in expected.items():
        places = pick(trajectory, index)
        assert torch.equal(frames_of(trajectory, index, places)[0], images)
        assert scores_of(trajectory, index, places) == scores
        assert said in described(trajectory, index, places)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_mode": "linear"},
        {"gradient_mode": "last k", "gradient_steps": 1},
        {"gradient_mode": "one step", "optimize_steps": 0},
        {"screen_seeds": 3, "check_gradient": False},
        {"terms": (Term(rewards.create("jpeg_compressibility")),)},
        {"gradient_mode": "spread k", "gradient_steps": 1},
        {"gradient_mode": "spread k", "gradient_steps": 3, "optimize_steps": 0},
        {"finish_iterations": 1},
        {"finish_iterations": 9},
        {"finish_iterations": 1, "gradient_mode": "spread k", "gradient_steps": 3},
        {"finish_iterations": 9, "gradient_mode": "spread k", "gradient_steps": 3},
        {"finish_iterations": 9, "gradient_mode": "linear", "screen_seeds": 3},
        {"finish_iterations": 1, "terms": (Term(rewards.create("jpeg_compressibility")),)},
    ],
)
def test_the_planned_cost_is_what_the_run_takes(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen = plans(monkeypatch)
    redraw = run(models, **changes).trajectory.redraw
    same = redraw is not None and redraw.winners == (0,)  # then one picture is both
    assert seen[0]._done == pytest.approx(seen[0]._total - (STEPS["steps"] if same else 0))


def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress of every run from here on."""
    from comfyui_dno.nodes.comfy_bridge.progress import Progress

    seen: list[Progress] = []
    plan = Progress.plan
    monkeypatch.setattr(Progress, "plan", lambda self, *a: (seen.append(self), plan(self, *a)))
    return seen


@pytest.mark.parametrize("mode", ["exact", "spread k"])
@pytest.mark.parametrize("last", [0, 1, 9])
@pytest.mark.parametrize("begun", [False, True], ids=["in few steps", "in its last part"])
def test_so_it_is_of_a_run_that_goes_on(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, begun: bool, last: int, mode: str
) -> None:
    changes = {"gradient_mode": mode, "gradient_steps": 3, "check_gradient": not begun}
    part = run(models, **changes, finish_iterations=1 if begun else 0).trajectory
    seen = plans(monkeypatch)
    run(models, **changes, iterations=4, finish_iterations=last, resume=part)
    assert seen[0]._done == pytest.approx(seen[0]._total)
