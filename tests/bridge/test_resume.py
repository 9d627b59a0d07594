"""DNO Sampler goes on with a run: to the bit, or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno import rewards
from comfyui_dno.dno_core import Term, Trajectory
from comfyui_dno.dno_core.probability.regularizers import PermutationRegularizer
from comfyui_dno.dno_core.trajectories.continuation import NotTheSameRun
from comfyui_dno.dno_core.trajectories.file import load_trajectory, save_trajectory

from . import tiny
from .runs import request, wavy_reward
from .sabotage import Calls, interrupt, out_of_memory


def run(models: dict[str, Any], iterations: int, **changes: Any) -> Any:
    from comfyui_dno.nodes import optimization

    asked = request(**{**models, "iterations": iterations, **changes})
    return optimization.run(asked)


def assert_equal(a: Trajectory, b: Trajectory) -> None:
    """To the bit in everything but the seconds."""
    strip = [[dataclasses.replace(r, seconds=0.0) for r in run.records] for run in (a, b)]
    assert strip[0] == strip[1]
    for name in ("terms", "best", "best_noise_at", "stop_reason", "warnings", "meta"):
        assert getattr(a, name) == getattr(b, name), name
    assert torch.equal(a.best_noise, b.best_noise)
    assert torch.equal(a.last_noise, b.last_noise)
    assert a.optimizer_state.keys() == b.optimizer_state.keys()
    assert all(torch.equal(v, b.optimizer_state[k]) for k, v in a.optimizer_state.items())
    assert len(a.records) == len(b.records) == len(a.images) == len(a.latents)
    for index in range(len(a.records)):
        assert torch.equal(a.images[index], b.images[index])
        assert torch.equal(a.latents[index], b.latents[index])


@pytest.mark.parametrize(
    ("optimizer", "rate", "eta"), [("adam", 0.05, 1.0), ("sgd", 5.0, 1.0), ("adam", 0.05, 0.0)]
)
def test_a_run_resumed_from_a_file_equals_one_in_one_go(
    models: dict[str, Any], optimizer: str, rate: float, eta: float, tmp_path: Path
) -> None:
    values = {
        "batch": 2,
        "optimizer": optimizer,
        "learning_rate": rate,
        "eta": eta,
        "regularizer": PermutationRegularizer(),
        "terms": (wavy_reward(), Term(rewards.create("brightness"), watch=True)),
    }
    whole = run(models, 4, **values)
    assert max(whole.trajectory.best) > 2
    part = run(models, 2, **values).trajectory
    save_trajectory(part, tmp_path / "run")
    resumed = run(models, 4, **values, resume=load_trajectory(tmp_path / "run"))
    assert_equal(resumed.trajectory, whole.trajectory)
    assert torch.equal(resumed.image, whole.image)
    assert torch.equal(resumed.latent["samples"], whole.latent["samples"])


def test_a_trajectory_from_the_node_before_is_not_changed(models: dict[str, Any]) -> None:
    part = run(models, 2, memory_mb=0).trajectory
    before = [tensor.clone() for tensor in (part.last_noise, *part.optimizer_state.values())]
    first = run(models, 4, resume=part).trajectory
    assert len(part.records) == len(part.images) == 3
    after = (part.last_noise, *part.optimizer_state.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert_equal(run(models, 4, resume=part).trajectory, first)


def test_the_stock_picture_of_0_iterations_may_be_climbed_from(models: dict[str, Any]) -> None:
    start = run(models, 0).trajectory
    resumed = run(models, 3, resume=start).trajectory
    whole = run(models, 3).trajectory
    assert resumed.records[3].scores == whole.records[3].scores
    assert torch.equal(resumed.last_noise, whole.last_noise)
    assert torch.equal(resumed.latents[0], whole.latents[0])


def test_a_run_that_ran_out_of_memory_can_be_gone_on_with(models: dict[str, Any]) -> None:
    calls = Calls(models["model"], 16, out_of_memory, on=True)
    options = {"check_gradient": False, "graph_memory": "recompute"}
    broken = run({**models, "model": calls.model}, 4, **options).trajectory
    assert "Out of memory" in broken.stop_reason and len(broken.records) == 3
    calls.at = -1
    healed = run({**models, "model": calls.model}, 4, resume=broken).trajectory
    calls.count = 0
    assert_equal(healed, run({**models, "model": calls.model}, 4).trajectory)


def test_a_failure_right_after_resuming_gives_the_earlier_best(models: dict[str, Any]) -> None:
    part = run(models, 2).trajectory
    calls = Calls(models["model"], 1, out_of_memory)
    result = run({**models, "model": calls.model}, 4, resume=part)
    assert result.trajectory.records == part.records
    assert result.trajectory.best == part.best
    assert torch.equal(result.trajectory.last_noise, part.last_noise)
    assert "Out of memory" in result.trajectory.stop_reason


def test_a_cancel_right_after_resuming_keeps_the_earlier_best(models: dict[str, Any]) -> None:
    import comfy.model_management as management
    import folder_paths

    part = run(models, 2).trajectory
    calls = Calls(models["model"], 1, interrupt)
    folder = Path(folder_paths.get_temp_directory())
    before = set(folder.glob("dno_cancelled_*.png"))
    with pytest.raises(management.InterruptProcessingException):
        run({**models, "model": calls.model}, 4, resume=part)
    assert len(set(folder.glob("dno_cancelled_*.png")) - before) == 1


def test_a_run_that_has_all_iterations_is_returned_without_sampling(
    models: dict[str, Any],
) -> None:
    part = run(models, 2)
    for iterations in (2, 1, 0):
        calls = Calls(models["model"], -1, interrupt)
        result = run({**models, "model": calls.model}, iterations, resume=part.trajectory)
        assert calls.count == 0
        assert result.trajectory is part.trajectory
        assert torch.equal(result.image, part.image)
        assert torch.equal(result.latent["samples"], part.latent["samples"])


def test_the_first_gradient_is_not_checked_again(models: dict[str, Any]) -> None:
    part = run(models, 1).trajectory
    calls = Calls(models["model"], -1, interrupt)
    run({**models, "model": calls.model}, 2, resume=part)
    assert calls.count == 2 * 3 + 3, "two forward passes and one sweep of three steps"


def test_a_gradient_that_was_never_checked_is_checked_on_resume(models: dict[str, Any]) -> None:
    part = run(models, 1, check_gradient=False).trajectory
    calls = Calls(models["model"], -1, interrupt)
    resumed = run({**models, "model": calls.model}, 2, resume=part).trajectory
    assert calls.count >= 2 * 3 + 3 + 2 * 3, "and two forward passes more, to check"
    assert "gradient_checked" not in part.meta and resumed.meta["gradient_checked"]


def test_a_run_with_nothing_left_to_do_chooses_its_best_by_the_weights_of_now(
    models: dict[str, Any],
) -> None:
    def mix(weight: float) -> tuple[Term, ...]:
        return wavy_reward(), Term(rewards.create("darkness"), weight, "minimize")

    part = run(models, 3, terms=mix(0.0), learning_rate=0.1).trajectory
    done = run(models, 3, terms=mix(1000.0), resume=part).trajectory
    lightest = min(range(4), key=lambda i: part.records[i].scores[1][0])
    assert part.best != done.best == (lightest,)


def test_a_time_limit_counts_the_new_iterations_only(models: dict[str, Any]) -> None:
    part = run(models, 2).trajectory
    spent = tuple(dataclasses.replace(record, seconds=1000.0) for record in part.records)
    slow = dataclasses.replace(part, records=spent)
    resumed = run(models, 4, resume=slow, time_limit=900.0).trajectory
    assert len(resumed.records) == 5
    cut = run(models, 50, resume=slow, time_limit=0.001).trajectory
    assert len(cut.records) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 6),
        ("steps", 4),
        ("cfg", 3.5),
        ("scheduler", "karras"),
        ("denoise", 0.9),
        ("eta", 0.5),
        ("optimizer", "sgd"),
    ],
)
def test_a_widget_that_must_stay_is_named_with_both_values(
    name: str, value: Any, models: dict[str, Any]
) -> None:
    part = run(models, 1).trajectory
    calls = Calls(models["model"], -1, interrupt)
    with pytest.raises(NotTheSameRun) as error:
        run({**models, "model": calls.model}, 3, resume=part, **{name: value})
    message = str(error.value)
    assert f"with {name} {part.meta[name]} and the widget says {value}. Set" in message
    assert calls.count == 0, "nothing was run for it"


def test_moments_that_are_missing_are_told(models: dict[str, Any]) -> None:
    part = dataclasses.replace(run(models, 1).trajectory, optimizer_state={})
    with pytest.raises(NotTheSameRun, match="holds no moments of adam"):
        run(models, 3, resume=part)


def test_widgets_that_only_shape_the_climb_are_free(models: dict[str, Any]) -> None:
    part = run(models, 1).trajectory
    changes = {"learning_rate": 0.01, "gradient_clip": 0.5, "check_gradient": False}
    changes["regularizer"] = PermutationRegularizer()
    changes["terms"] = (Term(rewards.create("brightness"), weight=2.0),)
    resumed = run(models, 3, resume=part, **changes).trajectory
    assert [record.settings.learning_rate for record in resumed.records] == [0.02] + 3 * [0.01]
    assert resumed.records[3].settings.weights == (2.0,)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ((1, 4, 8, 16), "8 columns and this one 16"),
        ((1, 4, 16, 8), "8 rows and this one 16"),
        ((3, 4, 8, 8), "1 images .batch size. and this one 3"),
    ],
)
def test_a_latent_of_another_size_is_named(
    samples: tuple[int, ...], said: str, models: dict[str, Any]
) -> None:
    part = run(models, 1).trajectory
    with pytest.raises(NotTheSameRun, match=said):
        run(models, 3, resume=part, latent={"samples": torch.zeros(samples)})


def test_another_reward_is_named(models: dict[str, Any]) -> None:
    part = run(models, 1).trajectory
    with pytest.raises(NotTheSameRun, match="'brightness' and this one has 'contrast'"):
        run(models, 3, resume=part, terms=(Term(rewards.create("contrast")),))


def other_model() -> Any:
    model = tiny.sd_model(torch.float32)
    tiny.randomize(model.model.diffusion_model, seed=7)
    return model


def other_vae() -> Any:
    vae = tiny.vae(torch.float32)
    tiny.randomize(vae.first_stage_model, seed=7)
    return vae


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("model", other_model, "model, LoRA, prompts"),
        ("positive", lambda: tiny.conditioning(9, torch.float32), "model, LoRA, prompts"),
        ("vae", other_vae, "the VAE"),
        ("latent", lambda: {"samples": torch.ones(1, *tiny.LATENT)}, "latent and mask"),
        ("terms", lambda: (hueless("brightness"),), "reward 'brightness'"),
    ],
)
def test_other_inputs_show_when_the_last_noise_is_sampled_again(
    name: str, make: Any, said: str, models: dict[str, Any]
) -> None:
    values = {"denoise": 0.6}
    part = run(models, 1, **values).trajectory
    with pytest.raises(NotTheSameRun, match=said):
        run({**models, **values}, 3, resume=part, **{name: make()})


def hueless(name: str) -> Term:
    """A reward that calls itself like the real one and looks at the upper half only."""
    from comfyui_dno.rewards.base import PixelReward

    real = rewards.create(name)

    def score(images: Tensor) -> Tensor:
        return images[:, :, : images.shape[2] // 4].flatten(1).mean(1)

    return Term(PixelReward(real.name, real.unit, real.scale, score))
