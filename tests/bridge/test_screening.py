"""Best of N: the run starts from the best of the pictures that the stock sampler draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from . import tiny
from .runs import request, stock
from .sabotage import CALLS, Calls, interrupt

COUNT = 5


def stock_pictures(asked: Any) -> tuple[list[torch.Tensor], list[tuple[float, ...]]]:
    """KSampler's latents for every seed that is screened, and what they score."""
    from comfyui_dno.nodes import optimization

    latents, scores = [], []
    for seed in range(asked.seed, asked.seed + asked.screen_seeds):
        alone = dataclasses.replace(
            asked,
            drawing=dataclasses.replace(asked.drawing, seed=seed),
            iterations=0,
            screen_seeds=1,
        )
        latents.append(stock(alone)["samples"])
        result = optimization.run(alone)
        assert min(result.trajectory.records[0].quantile) > 0.01
        scores.append(result.trajectory.records[0].scores[0])
    return latents, scores


def masked(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    samples = torch.randn(batch, *tiny.LATENT, generator=generator)
    mask = torch.linspace(0, 1, 32).expand(1, 32, 32).clone()
    return {"samples": samples, "noise_mask": mask}


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 3},
        {"batch": 3, "eta": 0.0},
        {"latent": masked(3), "denoise": 0.7},
        {"latent": {"samples": torch.zeros(3, *tiny.LATENT), "batch_index": [4, 1, 1]}},
    ],
    ids=["sde", "ode", "masked", "batch index"],
)
def test_the_start_is_the_best_stock_picture_of_every_image_to_the_bit(
    changes: dict[str, Any],
) -> None:
    from comfyui_dno.nodes import optimization

    asked = request(screen_seeds=COUNT, iterations=1, check_gradient=False, **changes)
    latents, scores = stock_pictures(asked)
    best = [max(range(COUNT), key=lambda c, b=b: scores[c][b]) for b in range(3)]
    trajectory = optimization.run(asked).trajectory
    assert trajectory.meta["screened_seeds"] == [asked.seed + c for c in best]
    for image, candidate in enumerate(best):
        assert torch.equal(trajectory.latents[0][image], latents[candidate][image])
        assert trajectory.records[0].scores[0][image] == pytest.approx(
            scores[candidate][image], abs=1e-5
        )
    assert len(trajectory.records) == 2
    if "batch_index" not in asked.latent:
        assert len(set(best)) > 1, "every image likes the same seed: nothing is mixed here"


def test_without_iterations_it_is_best_of_n() -> None:
    from comfyui_dno.nodes import optimization

    asked = request(screen_seeds=COUNT, iterations=0, batch=2)
    latents, scores = stock_pictures(asked)
    result = optimization.run(asked)
    best = [max(range(COUNT), key=lambda c, b=b: scores[c][b]) for b in range(2)]
    expected = torch.stack([latents[c][b] for b, c in enumerate(best)])
    assert torch.equal(result.latent["samples"], expected)
    assert torch.equal(result.image, asked.vae.decode(expected))
    assert len(result.trajectory.records) == 1


def test_one_seed_is_no_screening() -> None:
    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(torch.float32), -1, interrupt)
    asked = request(model=calls.model, iterations=0, screen_seeds=1)
    result = optimization.run(asked)
    assert calls.count == CALLS
    assert "screened_seeds" not in result.trajectory.meta


def test_the_climb_goes_on_from_the_winner() -> None:
    from comfyui_dno.nodes import optimization

    climbed = optimization.run(request(screen_seeds=COUNT, learning_rate=0.05)).trajectory
    assert climbed.best == (2,)
    plain = optimization.run(request(learning_rate=0.05)).trajectory
    assert climbed.records[-1].scores[0] > plain.records[-1].scores[0]


def test_a_screened_run_is_gone_on_with_and_not_screened_again() -> None:
    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(torch.float32), -1, interrupt)
    shared = {"model": calls.model, "screen_seeds": COUNT, "check_gradient": False}
    shared["graph_memory"] = "recompute"
    asked = request(iterations=4, time_limit=1e6, batch=2, **shared)
    whole = optimization.run(asked).trajectory
    first = optimization.run(dataclasses.replace(asked, iterations=2)).trajectory
    calls.count = 0
    resumed = optimization.run(dataclasses.replace(asked, resume=first)).trajectory
    assert calls.count == CALLS * (3 + 2), "three passes forward, two back"
    assert resumed.meta == whole.meta and len(whole.meta["screened_seeds"]) == 2
    assert [r.scores for r in resumed.records] == [r.scores for r in whole.records]
    assert torch.equal(resumed.last_noise, whole.last_noise)


@pytest.mark.parametrize("call", [0, 1, CALLS + 1, 2 * CALLS])
def test_a_cancel_acts_within_a_step_of_the_screening(call: int) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(torch.float32), call, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(request(model=calls.model, screen_seeds=COUNT))
    assert calls.count == call + 1
    assert not management.in_training


def test_only_watched_rewards_cannot_be_screened_either() -> None:
    from comfyui_dno import rewards
    from comfyui_dno.dno_core import Term
    from comfyui_dno.nodes import optimization

    watched = (Term(rewards.create("brightness"), watch=True),)
    with pytest.raises(ValueError, match="Every reward is only watched"):
        optimization.run(request(terms=watched, iterations=0, screen_seeds=2))
