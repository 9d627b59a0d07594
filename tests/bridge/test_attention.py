"""Attention kernels without a right backward are replaced, and only those."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_dno.dno_core import Problem

from . import tiny
from .fingerprint import fingerprint
from .runs import inside, request, wavy_reward


def broken(name: str, asked: list[str]) -> Any:
    """A kernel as ComfyUI registers them, which loses the gradient without a word."""
    import comfy.ldm.modules.attention as attention

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(name)
        return attention.attention_pytorch(*args, **kwargs).detach()

    kernel.__name__ = name
    return attention.wrap_attn(kernel)


def activate(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    """Make it the optimized attention, also where it was imported by name."""
    import comfy.ldm.modules.attention as attention

    monkeypatch.setattr(attention, "optimized_attention", kernel)
    monkeypatch.setattr(attention, "optimized_attention_masked", kernel)


def gradient(problem: Problem, z: torch.Tensor, to_latent: Any) -> torch.Tensor:
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    return problem.gradient(z, evaluation, evaluation.image_gradient)


@pytest.mark.parametrize("name", ["attention_flash", "attention_sage", "attention3_sage"])
def test_flash_and_sage_are_replaced_by_pytorchs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as attention

    activate(monkeypatch, attention.attention_pytorch)
    expected = inside(request(terms=(wavy_reward(),)), gradient)
    asked: list[str] = []
    activate(monkeypatch, broken(name, asked))
    got = inside(request(terms=(wavy_reward(),)), gradient)
    assert asked == []
    torch.testing.assert_close(got, expected)


def test_the_fake_kernel_would_have_been_used_and_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    expected = inside(request(terms=(wavy_reward(),)), gradient)
    activate(monkeypatch, broken("attention_of_someone", asked))
    got = inside(request(terms=(wavy_reward(),)), gradient)
    assert asked
    assert (got - expected).norm() > 0.01 * expected.norm()


def test_another_override_still_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    activate(monkeypatch, broken("attention_sage", []))
    seen: list[str] = []

    def override(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(function.__name__)
        return function(*args, **kwargs)

    model = tiny.sd_model(torch.float32)
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    before = fingerprint(model.model_options)
    inside(request(model=model, terms=(wavy_reward(),)), gradient)
    assert set(seen) == {"attention_pytorch"}
    assert fingerprint(model.model_options) == before


def test_without_them_nothing_is_overridden() -> None:
    from comfyui_dno.nodes.comfy_bridge.loading import run_model

    model = tiny.sd_model(torch.float32)
    options = run_model(model, []).model_options["transformer_options"]
    assert "optimized_attention_override" not in options
    assert options.keys() == model.model_options["transformer_options"].keys()


def test_the_input_model_is_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_dno.nodes.comfy_bridge.loading import run_model

    activate(monkeypatch, broken("attention_flash", []))
    model = tiny.sd_model(torch.float32)
    before = fingerprint(model.model_options)
    run = run_model(model, [])
    assert "optimized_attention_override" in run.model_options["transformer_options"]
    assert fingerprint(model.model_options) == before
