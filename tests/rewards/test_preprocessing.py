from __future__ import annotations

import json
import math

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import functional as tv
from transformers import CLIPImageProcessor, SiglipImageProcessor

from comfyui_dno.rewards import RewardError
from comfyui_dno.rewards.towers.open_clip_tower import configured_preprocessing
from comfyui_dno.rewards.towers.preprocessing import (
    Preprocessing,
    clip_preprocessing,
    hps_preprocessing,
    preprocess,
    siglip_preprocessing,
)
from comfyui_dno.rewards.towers.processor_config import read_preprocessing
from comfyui_dno.tests.rewards.pictures import as_images, natural_pictures

try:
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
except ImportError:  # transformers 4: its plain ones work with Pillow
    CLIPImageProcessorPil, SiglipImageProcessorPil = CLIPImageProcessor, SiglipImageProcessor

PICTURES = natural_pictures()
IDS = [f"{picture.width}x{picture.height}" for picture in PICTURES]


@pytest.fixture
def official(monkeypatch):
    """Makes Pillow 13 resize tall pictures as all Pillows before it did: horizontally first.

    The models were trained behind those; the order shows at hard edges alone.
    """
    plain = Image.Image.resize

    def horizontally_first(picture, size, *settings, **named):
        if picture.height > 1.3 * picture.width:
            picture = plain(picture, (size[0], picture.height), *settings, **named)
        return plain(picture, size, *settings, **named)

    monkeypatch.setattr(Image.Image, "resize", horizontally_first)


def assert_same_pixels(found, expected, settings):
    assert found.shape == expected.shape
    std = torch.tensor(settings.std).view(1, 3, 1, 1)
    off = ((found - expected) * std).abs()
    assert off.mean() < 0.5 / 255 and off.max() < 3 / 255


@pytest.mark.parametrize("processor", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("target", [224, 63])
@pytest.mark.parametrize("picture", PICTURES, ids=IDS)
def test_it_agrees_with_transformers_processor_of_clip(
    processor, target, picture, tmp_path, official
):
    reference = processor(
        size={"shortest_edge": target}, crop_size={"height": target, "width": target}
    )
    reference.save_pretrained(tmp_path)
    settings = read_preprocessing(tmp_path, 99)
    assert settings == clip_preprocessing(target)
    expected = reference(images=picture, return_tensors="pt")["pixel_values"]
    assert_same_pixels(preprocess(as_images(picture), settings), expected, settings)


@pytest.mark.parametrize("processor", [SiglipImageProcessor, SiglipImageProcessorPil])
@pytest.mark.parametrize("picture", PICTURES, ids=IDS)
def test_it_agrees_with_transformers_processor_of_siglip(processor, picture, tmp_path, official):
    reference = processor(size={"height": 96, "width": 96}, resample=3)
    reference.save_pretrained(tmp_path)
    settings = read_preprocessing(tmp_path, 99, clip=False)
    assert settings == siglip_preprocessing(96)
    expected = reference(images=picture, return_tensors="pt")["pixel_values"]
    assert_same_pixels(preprocess(as_images(picture), settings), expected, settings)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("picture", PICTURES, ids=IDS)
def test_it_agrees_with_open_clips_transform(resize_mode, interpolation, picture, official):
    fill = 77 if resize_mode == "longest" else 0
    config = {
        "size": 96,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.3, 0.2, 0.25),
        "interpolation": interpolation,
        "resize_mode": resize_mode,
        "fill_color": fill,
    }
    reference = image_transform(
        96,
        is_train=False,
        mean=config["mean"],
        std=config["std"],
        resize_mode=resize_mode,
        interpolation=interpolation,
        fill_color=fill,
    )
    settings = configured_preprocessing(config)
    found = preprocess(as_images(picture), settings)
    assert_same_pixels(found, reference(picture)[None], settings)


def as_hps_published_it(picture, size):
    """ResizeMaxSize of tgxs002/HPSv2 (img_score.py and open_clip/transform.py), step by step."""
    image = tv.to_tensor(picture)
    scale = size / float(max(image.shape[1:]))
    height, width = (round(side * scale) for side in image.shape[1:])
    image = tv.resize(image, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
    dy, dx = size - height, size - width
    image = tv.pad(image, [dx // 2, dy // 2, dx - dx // 2, dy - dy // 2], fill=0)
    return tv.normalize(image, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)[None]


@pytest.mark.parametrize("picture", PICTURES, ids=IDS)
def test_it_is_what_hps_published(picture):
    found = preprocess(as_images(picture), hps_preprocessing(224))
    torch.testing.assert_close(found, as_hps_published_it(picture, 224), atol=1e-5, rtol=0)


@pytest.mark.parametrize("picture", PICTURES, ids=IDS)
def test_hps_lies_where_open_clip_puts_the_longest_side(picture):
    settings = hps_preprocessing(224)
    found = preprocess(as_images(picture), settings)
    expected = image_transform(224, is_train=False, resize_mode="longest")(picture)[None]
    off = (found - expected).abs() * torch.tensor(settings.std).view(1, 3, 1, 1)
    assert (
        off.mean() < 0.5 / 255
    )  # Pillow cuts what overshoots at edges, a tensor's resize does not


def test_the_longest_side_is_rounded_as_published_for_every_shape():
    for longer in range(1, 700):
        scale = 224 / float(longer)
        for shorter in range(1, longer + 1, 7):
            expected = max(1, round(shorter * scale))
            settings = hps_preprocessing(224)
            assert settings.fitted((longer, shorter)) == (224, expected)


def test_a_fixed_height_and_width_squashes_instead_of_cropping(tmp_path):
    config = {"size": {"height": 48, "width": 40}, "do_center_crop": False, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = read_preprocessing(tmp_path, 224)
    assert settings == Preprocessing((48, 40), None, "bilinear", fit="squash")
    assert preprocess(torch.rand(2, 3, 30, 90), settings).shape == (2, 3, 48, 40)


def test_a_crop_larger_than_the_image_is_padded_with_black():
    settings = Preprocessing(None, (8, 10), mean=(0.0,) * 3, std=(1.0,) * 3)
    found = preprocess(torch.ones(1, 3, 4, 12), settings)
    assert found.shape == (1, 3, 8, 10)
    assert found[..., 2:6, :].min() == 1 and found.sum() == 3 * 4 * 10


def test_without_a_file_the_models_own_settings_are_used(tmp_path):
    assert read_preprocessing(tmp_path, 96) == clip_preprocessing(96)
    assert read_preprocessing(tmp_path, 96, clip=False) == siglip_preprocessing(96)


def test_the_settings_are_found_among_those_of_all_processors(tmp_path):
    processor = {"image_processor": {"size": {"shortest_edge": 80}, "crop_size": 64}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    assert read_preprocessing(tmp_path, 96) == Preprocessing((80, 80), (64, 64))


@pytest.mark.parametrize(
    "text", ["{", '{"resample": 0}', '{"do_rescale": false}', '{"size": {"longest_edge": 5}}', "[]"]
)
def test_a_file_that_cannot_be_followed_is_named(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RewardError, match="preprocessor_config.json cannot be used"):
        read_preprocessing(tmp_path, 224)


ALL = [clip_preprocessing(32), siglip_preprocessing(32), hps_preprocessing(32)]


@pytest.mark.parametrize("settings", ALL, ids=["clip", "siglip", "hps"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (2, 300), (300, 1)])
def test_tiny_and_thin_pictures_come_out_whole(settings, shape):
    found = preprocess(torch.rand(1, 3, *shape), settings)
    assert found.shape == (1, 3, 32, 32) and found.isfinite().all()


@pytest.mark.parametrize("settings", ALL, ids=["clip", "siglip", "hps"])
def test_nan_stays_nan(settings):
    x = torch.rand(2, 3, 40, 40)
    x[0, 0, 20, 20] = math.nan
    assert preprocess(x, settings).isnan().flatten(1).any(1).tolist() == [True, False]


@pytest.mark.parametrize("settings", ALL, ids=["clip", "siglip", "hps"])
def test_every_pixel_of_a_white_image_keeps_its_gradient(settings):
    x = torch.ones(1, 3, 64, 64, requires_grad=True)
    preprocess(x, settings).sum().backward()
    assert (x.grad > 0).all()


@pytest.mark.parametrize("settings", ALL, ids=["clip", "siglip", "hps"])
def test_the_gradient_equals_central_differences(settings, images, relative_gradient_error):
    def summed(x):
        return preprocess(x, settings).square().sum(dim=(1, 2, 3))

    assert relative_gradient_error(summed, images) < 1e-7
