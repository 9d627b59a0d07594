"""Weights that are streamed through reused buffers, simulated on the CPU.

Guaranteed: models under dynamic VRAM are replaced by delegates with weights of their own or
refused; buffers that torch itself overwrites are right. Overwriting that torch cannot see is
wrong by nature: the run's check finds it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyui_dno.dno_core import GradientMismatch, Problem

from . import tiny
from .runs import inside, request, wavy_reward


def streamed(patcher: Any, delegate: Any = None) -> Any:
    """The patcher as if under dynamic VRAM; with a delegate, as core loaders make it."""
    from comfy.model_patcher import ModelPatcher

    class Streamed(ModelPatcher):
        made = 0

        def is_dynamic(self) -> bool:
            return True

        def get_non_dynamic_delegate(self) -> Any:
            assert not torch.is_inference_mode_enabled()
            Streamed.made += 1
            return delegate

    patcher.__class__ = Streamed
    patcher.cached_patcher_init = None if delegate is None else (None, ())
    return patcher


def test_a_streamed_model_and_vae_are_replaced_by_their_delegates() -> None:
    from comfyui_dno.nodes import optimization

    plain = request()
    expected = optimization.run(plain).trajectory
    vae = tiny.vae(torch.float32)
    vae.patcher = streamed(vae.patcher, plain.vae.patcher)
    model = streamed(tiny.sd_model(torch.float32), plain.model)
    asked = request(model=model, vae=vae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(vae), "decode", lambda self, samples: torch.zeros(1, 16, 16, 3))
        result = optimization.run(asked)
    assert type(model).made == type(vae.patcher).made == 1
    assert [r.scores for r in result.trajectory.records] == [r.scores for r in expected.records]
    assert vae.first_stage_model is not plain.vae.first_stage_model


@pytest.mark.parametrize("what", ["model", "VAE"])
def test_a_streamed_model_without_a_delegate_is_refused(what: str) -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.refusals import Unsupported

    asked = request()
    streamed(asked.model if what == "model" else asked.vae.patcher)
    with pytest.raises(Unsupported, match=f"The {what} is streamed by dynamic VRAM") as caught:
        optimization.run(asked)
    assert str(caught.value).count(". ") == 1
    assert "--disable-dynamic-vram" in str(caught.value)


def test_a_streamed_controlnet_is_refused() -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.refusals import Unsupported

    control = tiny.control_net(torch.float32)
    streamed(control.control_model_wrapped, control.control_model_wrapped)
    positive = tiny.conditioning(1, torch.float32, control=control)
    with pytest.raises(Unsupported, match="A ControlNet is streamed by dynamic VRAM"):
        optimization.run(request(positive=positive))


def test_a_streamed_model_patch_is_refused() -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.refusals import Unsupported

    model = tiny.sd_model(torch.float32)
    model.set_additional_models("adapter", [streamed(tiny.sd_model(torch.float32))])
    with pytest.raises(Unsupported, match="A model patch is streamed by dynamic VRAM"):
        optimization.run(request(model=model))


class Buffered(nn.Module):
    """A linear layer whose weight is copied, for every call, into a buffer shared by all."""

    shared = torch.empty(0)

    def __init__(self, linear: nn.Linear, hidden_from_torch: bool) -> None:
        super().__init__()
        self.linear = linear
        self.hidden_from_torch = hidden_from_torch

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        buffer = Buffered.shared[: weight.numel()].view_as(weight)
        if self.hidden_from_torch:
            buffer.numpy()[:] = weight.detach().numpy()
        else:
            buffer.copy_(weight)
        return nn.functional.linear(x, buffer, self.linear.bias)


def buffered_model(hidden_from_torch: bool, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL whose attention projections all live in one buffer."""
    with torch.inference_mode(False):
        Buffered.shared = torch.zeros(100_000, dtype=dtype)
        model = tiny.sd_model(dtype)
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.weight.shape[1] >= 16 and name[:3] == "to_":
                setattr(module, name, Buffered(child, hidden_from_torch))
    return model


def gradient_of(asked: Any) -> Tensor:
    def work(problem: Problem, z: Tensor, to_latent: Any) -> Tensor:
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        return problem.gradient(z, evaluation, evaluation.image_gradient)

    return inside(asked, work)


def test_buffers_that_torch_overwrites_give_the_right_gradient() -> None:
    terms = (wavy_reward(),)
    expected = gradient_of(request(terms=terms))
    buffered = gradient_of(request(terms=terms, model=buffered_model(hidden_from_torch=False)))
    assert expected.norm() > 0
    torch.testing.assert_close(buffered, expected)


def test_overwriting_that_torch_cannot_see_is_found_by_the_check() -> None:
    from comfyui_dno.nodes import optimization

    model = buffered_model(hidden_from_torch=True)
    with pytest.raises(GradientMismatch):
        optimization.run(request(model=model))
