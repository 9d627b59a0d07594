from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor

from comfyui_dno.rewards import RewardError
from comfyui_dno.rewards.towers.preprocessing import Preprocessing, preprocess
from comfyui_dno.rewards.towers.processor_config import read_preprocessing

try:
    from transformers import CLIPImageProcessorPil
except ImportError:  # transformers 4, whose CLIPImageProcessor works with Pillow
    CLIPImageProcessorPil = CLIPImageProcessor

SIZES = [(64, 64), (65, 97), (131, 83), (301, 257), (224, 224), (512, 333), (40, 40)]


def picture(height: int, width: int) -> Image.Image:
    """Edges, thin lines and noise: what tells one resampling from another."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 8, height // 8, width // 2, height // 2), fill=(255, 255, 255))
    draw.ellipse((width // 3, height // 3, width - 5, height - 5), fill=(200, 20, 40))
    draw.line((0, 0, width, height), fill=(0, 0, 0), width=1)
    return image


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("processor", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("target", [224, 64])
@pytest.mark.parametrize("size", SIZES)
def test_it_agrees_with_the_image_processor_of_transformers(processor, target, size, tmp_path):
    reference = processor(
        size={"shortest_edge": target}, crop_size={"height": target, "width": target}
    )
    reference.save_pretrained(tmp_path)
    settings = read_preprocessing(tmp_path, target)
    image = picture(*size)
    expected = reference(images=image, return_tensors="pt")["pixel_values"]
    found = preprocess(as_tensor(image), settings)
    assert found.shape == expected.shape
    std = torch.tensor(settings.std).view(1, 3, 1, 1)
    off = ((found - expected) * std).abs()
    assert off.mean() < 0.5 / 255 and off.max() < 3 / 255


def test_a_fixed_height_and_width_squashes_instead_of_cropping(tmp_path):
    config = {"size": {"height": 48, "width": 48}, "do_center_crop": False, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = read_preprocessing(tmp_path, 224)
    assert settings == Preprocessing((48, 48), None, "bilinear")
    assert preprocess(torch.rand(2, 3, 30, 90), settings).shape == (2, 3, 48, 48)


def test_a_crop_larger_than_the_image_is_padded_with_black():
    settings = Preprocessing(None, (8, 10), mean=(0.0,) * 3, std=(1.0,) * 3)
    found = preprocess(torch.ones(1, 3, 4, 12), settings)
    assert found.shape == (1, 3, 8, 10)
    assert found[..., 2:6, :].min() == 1 and found.sum() == 3 * 4 * 10


def test_without_a_file_clips_own_settings_are_used(tmp_path):
    assert read_preprocessing(tmp_path, 96) == Preprocessing(96, (96, 96))


@pytest.mark.parametrize(
    "text", ["{", '{"resample": 0}', '{"do_rescale": false}', '{"size": {"longest_edge": 5}}', "[]"]
)
def test_a_file_that_cannot_be_followed_is_named(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RewardError, match="preprocessor_config.json cannot be used"):
        read_preprocessing(tmp_path, 224)


def test_every_pixel_of_a_white_image_keeps_its_gradient():
    x = torch.ones(1, 3, 64, 64, requires_grad=True)
    preprocess(x, Preprocessing(224, (224, 224))).sum().backward()
    assert (x.grad > 0).all()


def test_the_gradient_equals_central_differences(images, relative_gradient_error):
    def summed(x):
        return preprocess(x, Preprocessing(32, (32, 32))).square().sum(dim=(1, 2, 3))

    assert relative_gradient_error(summed, images) < 1e-7
