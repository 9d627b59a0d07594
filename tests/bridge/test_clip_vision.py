"""The user's CLIP_VISION as a reward's tower: same embedding, right gradient, own patcher."""

from __future__ import annotations

import json
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Term
from comfyui_dno.rewards import RewardError

from .runs import gradient_errors, request

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 20,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def reference(kind: str = "clip") -> Any:
    """transformers' own model of these sizes, random weights of a trained model's spread."""
    import transformers as tr

    torch.manual_seed(3)
    if kind == "clip":
        model: Any = tr.CLIPVisionModelWithProjection(tr.CLIPVisionConfig(**SMALL))
    else:
        model = tr.SiglipVisionModel(tr.SiglipVisionConfig(**SMALL))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval().requires_grad_(False)


def clip_vision(weights: Any = None, kind: str = "clip_vision_model") -> Any:
    """What Load CLIP Vision gives for these weights: made, as nodes run, in inference mode."""
    made = vision_model(kind)
    made.load_sd((weights or reference()).state_dict())
    return made


def vision_model(kind: str) -> Any:
    """ComfyUI's own model of these sizes; it reads them from a file in every version."""
    import comfy.clip_vision

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({**SMALL, "model_type": kind}), encoding="utf-8")
        return comfy.clip_vision.ClipVisionModel(str(path))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ComfyUI's weights in float64, for central differences."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "text_encoder_dtype", lambda *_: torch.float64)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def tower_of(model: Any) -> Any:
    from comfyui_dno.nodes.comfy_bridge.clip_vision import clip_vision_tower

    return clip_vision_tower(model)


def loaded(tower: Any) -> Any:
    """The tower's weights, where a run has them: on the device and known to autograd."""
    import comfy.model_management

    from comfyui_dno.nodes.comfy_bridge.loading import reward_patchers
    from comfyui_dno.nodes.comfy_bridge.scope import free_weights, gradient_scope

    patchers = reward_patchers([types.SimpleNamespace(modules=tower.modules)])
    comfy.model_management.load_models_gpu(patchers)
    with gradient_scope():
        free_weights(patchers)
    return tower


def pictures(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(*shape[:2], 4, 5, generator=generator, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic")
    return fine.clamp(0.05, 0.95)


def test_the_embedding_is_that_of_transformers_given_equal_pixels(double: None) -> None:
    from comfyui_dno.nodes.comfy_bridge.clip_vision import embedding

    expected = reference()
    ours = loaded(tower_of(clip_vision(expected)))
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    got = embedding(ours.network.dno_patcher.model, pixels)
    torch.testing.assert_close(got, expected(pixel_values=pixels).image_embeds, rtol=0, atol=1e-9)


def test_it_is_the_image_embedding_that_comfyui_computes(double: None) -> None:
    """Up to the eighth bit that ComfyUI rounds the resized pixels to: here nothing is resized."""
    model = clip_vision()
    picture = (pictures(2, 3, 28, 28) * 255).round() / 255
    expected = model.encode_image(picture.movedim(1, -1)).image_embeds.double()
    got = loaded(tower_of(model)).image_features(picture)
    torch.testing.assert_close(
        got, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [(41, 53), (28, 28)], ids=["resized", "as it is"])
def test_the_gradient_agrees_with_central_differences(double: None, size: tuple[int, int]) -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope

    tower = loaded(tower_of(clip_vision()))
    assert not any(weight.is_inference() for weight in tower.network.dno_patcher.model.parameters())
    generator = torch.Generator().manual_seed(2)
    step = 1e-5
    with gradient_scope():
        aim = torch.randn(2, tower.width, generator=generator)
        x = pictures(2, 3, *size).requires_grad_()
        direction = torch.randn(x.shape, generator=generator)

        def value(images: Tensor) -> Tensor:
            return (tower.image_features(images) * aim).sum()

        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value(x), x)
        slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)
        assert gradient.abs().amax().item() > 0


def test_a_batch_is_embedded_as_each_picture_alone_and_to_unit_length() -> None:
    tower = loaded(tower_of(clip_vision()))
    x = pictures(3, 3, 40, 31).float()
    together = tower.image_features(x)
    alone = torch.cat([tower.image_features(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    assert together.shape == (3, 20) and tower.width == 20


def test_flash_and_sage_attention_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.attention as attention

    tower = loaded(tower_of(clip_vision()))
    x = pictures(1, 3, 30, 30).float()
    expected = tower.image_features(x)

    def attention_flash(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("flash attention has no right backward here")

    for name in ("optimized_attention", "optimized_attention_masked", "attention_basic"):
        monkeypatch.setattr(attention, name, attention_flash)
    monkeypatch.setattr(
        attention, "optimized_attention_for_device", lambda *_, **__: attention_flash
    )
    assert tower.image_features(x).equal(expected)


def test_the_models_own_patcher_is_used_and_the_tower_is_made_once() -> None:
    from comfyui_dno.nodes.comfy_bridge.loading import reward_patchers

    model = clip_vision()
    tower = tower_of(model)
    assert tower_of(model) is tower
    rewards = [types.SimpleNamespace(modules=tower.modules) for _ in range(2)]
    assert reward_patchers(rewards) == [model.patcher]
    assert not hasattr(model.model, "dno_patcher")


def test_a_dropped_clip_vision_is_freed() -> None:
    import gc
    import weakref

    model = clip_vision()
    gone = weakref.ref(model.model)
    tower_of(model)
    del model
    gc.collect()
    assert gone() is None


class Alike:
    """Likeness to one direction of the embedding space."""

    name, unit, scale, differentiable = "alike", "cosine", 0.1, True

    def __init__(self, tower: Any) -> None:
        self.tower, self.modules = tower, tower.modules
        self.aim = torch.nn.functional.normalize(torch.arange(tower.width) % 3 - 1.0, dim=0)

    def score(self, images: Tensor, context: Any = None) -> Tensor:
        return self.tower.image_features(images) @ self.aim.to(images)


def test_a_run_climbs_with_the_users_own_model_loaded_beside_the_others() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    model = clip_vision()
    asked = request(terms=(Term(Alike(tower_of(model))),), iterations=4, learning_rate=0.1)
    assert all(weight.is_inference() for weight in model.model.parameters())
    trajectory = optimization.run(asked).trajectory
    assert trajectory.meta["gradient_checked"]
    assert trajectory.records[-1].scores[0][0] > trajectory.records[0].scores[0][0]
    assert any(model.model is patcher.model for patcher in management.loaded_models())


def test_the_gradient_of_a_whole_run_agrees_with_central_differences(double: None) -> None:
    reward = Alike(tower_of(clip_vision()))
    assert max(gradient_errors(request(torch.float64, terms=(Term(reward),)))) < 1e-5


def test_weights_streamed_by_dynamic_vram_are_copied_not_borrowed() -> None:
    model = clip_vision()
    expected = loaded(tower_of(clip_vision())).image_features(pictures(1, 3, 30, 30).float())
    model.patcher.is_dynamic = lambda: True
    tower = loaded(tower_of(model))
    patcher = tower.network.dno_patcher
    assert patcher is not model.patcher and not patcher.is_dynamic()
    theirs = {tensor.data_ptr() for tensor in model.model.parameters()}
    assert not theirs & {tensor.data_ptr() for tensor in patcher.model.parameters()}
    got = tower.image_features(pictures(1, 3, 30, 30).float())
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_siglip_is_refused_since_comfyui_drops_its_pooling() -> None:
    theirs = reference("siglip")
    made = vision_model("siglip_vision_model")
    assert any("head." in name for name in theirs.state_dict())
    assert not any("head." in name for name in made.get_sd())
    with pytest.raises(RewardError, match="without the layer that makes one embedding") as caught:
        tower_of(made)
    assert "choose the SigLIP folder in the model widget" in str(caught.value)


def test_a_model_without_an_image_embedding_is_refused() -> None:
    class Dino:
        model_type = "dinov2"
        model = torch.nn.Linear(2, 2)

    with pytest.raises(RewardError, match=r"CLIP_VISION \(dinov2\) is no CLIP"):
        tower_of(Dino())
