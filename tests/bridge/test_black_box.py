"""Rewards without a gradient on a ComfyUI model: they climb, cost what was planned, can be left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno import rewards
from comfyui_dno.dno_core import Auto, Backpropagation, Hybrid1, Hybrid2, Term, ZoSgd
from comfyui_dno.rewards.base import PixelReward

from . import tiny
from .runs import request, wavy_reward
from .sabotage import CALLS, Calls, interrupt, out_of_memory

ESTIMATORS = [
    None,
    Auto(Hybrid2(3, 0.1)),
    Backpropagation(),
    Hybrid2(4, 0.1, probe_batch=2),
    Hybrid1(4),
    ZoSgd(5, 0.1),
]


def stepped(differentiable: bool = False) -> Term:
    """The mean pixel, in 255 steps: no gradient could be had."""

    def score(images: Tensor) -> Tensor:
        return (images.mean((1, 2, 3)) * 255).round() / 255

    return Term(PixelReward("stepped", "unit", 0.05, score, differentiable=differentiable))


def run(asked: Any) -> Any:
    from comfyui_dno.nodes import optimization

    return optimization.run(asked).trajectory


def without_gradients(model: Any) -> Any:
    """The MODEL, as one that raises where gradients are recorded."""

    def guard(out: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not out.requires_grad
        return out

    return Calls(model, None, guard)


def test_a_jpeg_reward_climbs_by_itself() -> None:
    term = Term(rewards.create("jpeg_incompressibility"))
    asked = request(terms=(term,), iterations=6, learning_rate=0.1, batch=2)
    trajectory = run(asked)
    first = trajectory.records[0].scores[0]
    best = [trajectory.records[at].scores[0][image] for image, at in enumerate(trajectory.best)]
    assert all(after > before for after, before in zip(best, first, strict=True))


def test_a_mix_of_both_kinds_climbs() -> None:
    trajectory = run(request(terms=(stepped(), wavy_reward()), iterations=4))
    assert float(trajectory.objectives()[-1]) > float(trajectory.objectives()[0])
    assert len(trajectory.records) == 5


def test_the_same_run_gives_the_same_bits() -> None:
    both = [
        run(request(terms=(stepped(),), batch=2, estimator=Auto(Hybrid2(5, 0.1)))).last_noise
        for _ in range(2)
    ]
    assert torch.equal(*both)


def test_zo_sgd_builds_no_graph_anywhere() -> None:
    """No tensor is saved for a backward, and model and reward run with gradients off."""

    def score(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not images.requires_grad
        return images.mean((1, 2, 3))

    asked = request(
        model=without_gradients(tiny.sd_model(torch.float32)).model,
        terms=(Term(PixelReward("watchful", "unit", 0.05, score)),),
        estimator=ZoSgd(4, 0.1),
        iterations=3,
    )
    saved = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trajectory = run(asked)
    assert not saved
    assert not torch.equal(trajectory.last_noise[:, 0], trajectory.best_noise[:, 0]) or (
        trajectory.best[0] == 3
    )


def test_the_guards_of_the_last_test_would_have_seen_a_graph() -> None:
    asked = request(
        model=without_gradients(tiny.sd_model(torch.float32)).model, estimator=Backpropagation()
    )
    with pytest.raises(AssertionError):
        run(asked)


def test_zo_sgd_is_loaded_as_for_plain_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room is made for a graph, which could push other models out of memory."""
    import comfy.sampler_helpers

    asked_for: list[int] = []
    load = comfy.sampler_helpers._prepare_sampling

    def noting(model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        asked_for.append(noise_shape[0])
        return load(model, noise_shape, *args, **kwargs)

    monkeypatch.setattr(comfy.sampler_helpers, "_prepare_sampling", noting)
    run(request(estimator=ZoSgd(2, 0.1), iterations=1))
    run(request(estimator=Hybrid1(2), iterations=1))
    assert asked_for == [1, 4]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("check", [False, True])
def test_the_progress_bar_is_full_when_the_run_is_done(
    monkeypatch: pytest.MonkeyPatch, estimator: Any, check: bool
) -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.progress import Progress

    made: list[Progress] = []

    class Kept(Progress):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(optimization, "Progress", Kept)
    term = stepped() if estimator is None else wavy_reward()
    run(request(terms=(term,), estimator=estimator, iterations=2, check_gradient=check, batch=2))
    (progress,) = made
    assert progress._total > 3
    if check and isinstance(estimator, (Auto, Backpropagation)):
        assert progress._done >= progress._total, "the check may take more than the planned two"
    else:
        assert progress._done == progress._total


def test_a_cancel_acts_within_a_step_of_a_probe() -> None:
    from comfy.model_management import InterruptProcessingException

    calls = Calls(tiny.sd_model(torch.float32), CALLS + 1, interrupt)
    asked = request(
        model=calls.model, terms=(stepped(),), cfg=1.0, estimator=Hybrid2(8, 0.1, probe_batch=1)
    )
    with pytest.raises(InterruptProcessingException):
        run(asked)
    assert calls.count == CALLS + 2, "iteration 0 and two steps of the first probe"


def test_where_memory_runs_out_fewer_probes_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first wide call fails; the run goes on with half as many and ends as planned."""
    from comfyui_dno.nodes.comfy_bridge import width

    # what counts the calls is a patch of the network, and would keep probes apart
    monkeypatch.setattr(width, "_is_patched", lambda guider: False)
    calls = Calls(tiny.sd_model(torch.float32), CALLS, out_of_memory)
    asked = request(
        model=calls.model, terms=(stepped(),), cfg=1.0, iterations=1, estimator=Hybrid2(4, 0.1)
    )
    trajectory = run(asked)
    assert len(trajectory.records) == 2 and "memory" not in trajectory.stop_reason
    assert calls.count == CALLS + 1 + 2 * CALLS + CALLS + CALLS


def test_prompts_of_their_own_reach_a_black_box_per_image() -> None:
    """Scored in groups of the batch: the context belongs to its images."""
    seen: list[int] = []

    def score(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.mean((1, 2, 3))

    term = Term(PixelReward("groups", "unit", 0.05, score, differentiable=False))
    run(request(terms=(term,), batch=3, iterations=1, estimator=Hybrid2(4, 0.1)))
    assert seen == [3] * 6
