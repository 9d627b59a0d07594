from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfyui_dno.dno_core.trajectories.trajectory import to_uint8
from comfyui_dno.rewards import RewardError, create
from comfyui_dno.rewards.jpeg import SCALES, bits_per_pixel, scale

NAMES = ("jpeg_compressibility", "jpeg_incompressibility")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reward_scales.json"


def saved_size(image: torch.Tensor, quality: int) -> int:
    """Bytes of the file that Pillow writes for the picture as a trajectory keeps it."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(image[None])[0].numpy()).save(file, "JPEG", quality=quality)
    return len(file.getvalue())


@pytest.mark.parametrize("quality", [10, 75, 95, 100])
def test_the_score_is_the_size_of_the_file_that_pillow_saves(images, quality):
    area = images.shape[2] * images.shape[3]
    expected = torch.tensor([8 * saved_size(image, quality) / area for image in images])
    assert torch.equal(create("jpeg_incompressibility", quality=quality).score(images), expected)
    assert torch.equal(create("jpeg_compressibility", quality=quality).score(images), -expected)


def test_grain_costs_more_than_a_plain_picture_and_its_size_does_not_count():
    generator = torch.Generator().manual_seed(1)
    grain = torch.rand(1, 3, 256, 256, generator=generator)
    plain = torch.full((1, 3, 256, 256), 0.4)
    assert bits_per_pixel(grain, 95) > 20 * bits_per_pixel(plain, 95)
    wide = grain.repeat(1, 1, 2, 2)
    assert bits_per_pixel(wide, 95).item() == pytest.approx(
        bits_per_pixel(grain, 95).item(), rel=0.01
    )


def test_the_default_quality_is_the_paper_s(images):
    default = create("jpeg_compressibility")
    assert torch.equal(
        default.score(images), create("jpeg_compressibility", quality=95).score(images)
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_black_box_and_leaves_the_images_alone(name, images):
    reward, before = create(name), images.clone()
    scores = reward.score(images.requires_grad_(True))
    assert not reward.differentiable and not scores.requires_grad
    assert scores.dtype == torch.float32 and scores.shape == (3,)
    assert torch.equal(images, before) and reward.modules == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_scores_like_its_images_alone_also_where_one_is_nan(name, images):
    reward = create(name)
    expected = reward.score(images)
    images[1, 0, 3, 3] = math.nan
    scores = reward.score(images)
    assert scores.isnan().tolist() == [False, True, False]
    assert torch.equal(scores[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_out_of_range_images_are_scored_as_they_are_saved(name, images):
    reward = create(name)
    assert torch.equal(reward.score(images * 9 - 4), reward.score((images * 9 - 4).clamp(0, 1)))
    assert reward.score(images.half()).dtype == torch.float32
    with pytest.raises(RewardError, match="Give plain RGB"):
        reward.score(torch.rand(1, 4, 8, 8))


def test_the_scales_are_the_measured_ones():
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))["rewards"]
    for quality, known in SCALES.items():
        found = measured[f"jpeg_incompressibility ({quality})"]["scale"]
        assert known == pytest.approx(found, rel=0.02)
        assert create("jpeg_compressibility", quality=quality).scale == known


def test_between_measured_qualities_the_scale_runs_straight():
    assert scale(1) == SCALES[10] and scale(100) == SCALES[100]
    assert scale(30) == pytest.approx((SCALES[10] + SCALES[50]) / 2)
    values = [scale(quality) for quality in range(1, 101)]
    assert all(low <= high for low, high in pairwise(values))
