"""A model that does not fit: part of its weights lies elsewhere, and is cast for every call.

ComfyUI's classic low VRAM, forced on a CPU: LoRAs are applied anew in every call. On an NVIDIA GPU
the weights go through buffers that the next layers use again; that is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem
from comfyui_dno.dno_core.noise_map.saved import saved_tensors_kept

from . import tiny
from .fingerprint import fingerprint
from .runs import inside, iteration_zero, wavy_reward
from .test_families import FAMILIES, asked, right_gradient
from .test_parity import assert_equal_to_stock
from .tiny_addons import with_lora

NAMES = ["SDXL", "SD3", "Flux dev"]


@pytest.fixture
def partly(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A third of every diffusion model is loaded; whether so, for every time one was."""
    from comfy.model_patcher import ModelPatcher

    noted: list[bool] = []
    original = ModelPatcher.load

    def load(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        if hasattr(self.model, "diffusion_model"):
            kwargs |= {"lowvram_model_memory": self.model_size() // 3, "full_load": False}
        done = original(self, device, *args, **kwargs)
        if hasattr(self.model, "diffusion_model"):
            noted.append(self.model.model_lowvram)
        return done

    monkeypatch.setattr(ModelPatcher, "load", load)
    yield noted
    assert noted
    assert all(noted)


def made(name: str, dtype: torch.dtype, lora: bool = True) -> Any:
    parts = FAMILIES[name](dtype)
    if lora:
        parts["model"] = with_lora(name, parts["model"])
    return asked(name, dtype, terms=(wavy_reward(),), **parts)


def gradient_of(asked: Any) -> Tensor:
    def work(problem: Problem, z: Tensor, to_latent: Any) -> Tensor:
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        return problem.gradient(z, evaluation, evaluation.image_gradient)

    return inside(asked, work)


@pytest.mark.parametrize("name", NAMES)
def test_a_partly_loaded_model_with_a_lora_has_the_right_gradient(
    name: str, partly: list[bool]
) -> None:
    right_gradient(made(name, torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_a_partly_loaded_model_starts_from_ksamplers_picture(name: str, partly: list[bool]) -> None:
    assert_equal_to_stock(made(name, torch.float32))


@pytest.mark.parametrize("lora", [False, True])
def test_a_partly_loaded_model_draws_the_picture_of_the_whole_one(
    lora: bool, request: pytest.FixtureRequest
) -> None:
    whole = iteration_zero(made("SDXL", torch.float32, lora))
    request.getfixturevalue("partly")
    part = iteration_zero(made("SDXL", torch.float32, lora))
    torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-4)


def test_a_run_leaves_the_weights_of_a_partly_loaded_model_as_they_were(
    partly: list[bool],
) -> None:
    import comfy.model_management

    from comfyui_dno.nodes import optimization

    request = made("SDXL", torch.float32)
    before = fingerprint(dict(request.model.model.state_dict()))
    trajectory = optimization.run(request).trajectory
    assert trajectory.last == 2
    comfy.model_management.unload_all_models()
    assert fingerprint(dict(request.model.model.state_dict())) == before


class Buffers:
    """Two buffers through which all weights go in turn, as asynchronous offloading has them."""

    def __init__(self) -> None:
        self._memory = [torch.zeros(2**22, dtype=torch.int8) for _ in range(2)]
        self.casts = 0

    def cast(
        self, layer: Any, input: Any = None, *, offloadable: bool = False, **options: Any
    ) -> tuple[Any, ...]:
        buffer = self._memory[self.casts % 2]
        self.casts += 1
        parts, start = [], 0
        for source in (layer.weight, layer.bias):
            if source is None:
                parts.append(None)
                continue
            part = buffer[start : start + source.nbytes].view(source.dtype).view(source.shape)
            parts.append(part.copy_(source))
            start += -(-source.nbytes // 16) * 16
        return (*parts, None) if offloadable else tuple(parts)


@pytest.mark.parametrize("name", ["SD1.5", *NAMES])
def test_weights_that_go_through_reused_buffers_have_the_right_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ops

    expected = gradient_of(made(name, torch.float32, lora=False))
    buffers = Buffers()
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", buffers.cast)
    streamed = made(name, torch.float32, lora=False)
    for module in streamed.model.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    got = gradient_of(streamed)
    assert buffers.casts > 50
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_plain_graph_over_reused_buffers_would_have_been_silently_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Buffers that were made in inference mode count no versions: autograd does not notice."""
    import comfy.ops

    buffers = Buffers()
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", buffers.cast)
    with torch.inference_mode(False):
        layers = [tiny.randomize(comfy.ops.manual_cast.Linear(4, 4), seed) for seed in range(3)]
        x = torch.randn(2, 4, requires_grad=True)
        got = torch.autograd.grad(through(layers, x).sum(), x)[0]
        with saved_tensors_kept():
            kept = torch.autograd.grad(through(layers, x).sum(), x)[0]
        monkeypatch.undo()
        expected = torch.autograd.grad(through(layers, x).sum(), x)[0]
    torch.testing.assert_close(kept, expected)
    assert (got - expected).norm() > 0.1 * expected.norm()


def through(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = torch.tanh(layer(x))
    return x
