from __future__ import annotations

import itertools
import math

import pytest
import torch

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.lab import lab, parse_colour

PIXEL_REWARDS = (
    "brightness",
    "darkness",
    "contrast",
    "colour",
    "saturation",
    "palette",
    "sharpness",
)


def plain(*colour: float) -> torch.Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_brightness_and_darkness_are_the_mean_pixel_and_minus_it(images):
    expected = (images * 2 - 1).flatten(1).mean(dim=1)
    torch.testing.assert_close(create("brightness").score(images), expected)
    torch.testing.assert_close(create("darkness").score(images), -expected)
    assert create("brightness").score(plain(1.0, 1.0, 1.0)).item() == pytest.approx(1)
    assert create("darkness").score(plain(0.0, 0.0, 0.0)).item() == pytest.approx(1)


def test_contrast_is_the_variance_of_the_channel_sum(images):
    sums = ((images * 2 - 1).sum(dim=1)).flatten(1)
    expected = (sums**2).mean(dim=1) - sums.mean(dim=1) ** 2
    torch.testing.assert_close(create("contrast").score(images), expected)
    half = torch.cat((plain(0.0, 0.0, 0.0), plain(1.0, 1.0, 1.0)), dim=3)
    assert create("contrast").score(half).item() == pytest.approx(9)
    assert create("contrast").score(plain(0.3, 0.4, 0.5)).item() == pytest.approx(0, abs=1e-6)


def test_the_lab_colours_are_those_of_the_published_tables():
    red, white = lab(plain(1.0, 0.0, 0.0)), lab(plain(1.0, 1.0, 1.0))
    torch.testing.assert_close(
        red[0, :, 0, 0], torch.tensor([53.24, 80.09, 67.20]), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        white[0, :, 0, 0], torch.tensor([100.0, 0.0, 0.0]), atol=0.01, rtol=0
    )


def test_the_lab_colours_are_kornia_s():
    from kornia import color

    grid = torch.rand(2, 3, 33, 29, generator=torch.Generator().manual_seed(2))
    grid[0, :, :4] *= 0.03  # below the bends of both curves
    torch.testing.assert_close(lab(grid), color.rgb_to_lab(grid), atol=0.02, rtol=0)


def test_saturation_is_the_mean_chroma(images):
    expected = lab(images)[:, 1:].norm(dim=1).mean(dim=(1, 2))
    scores = create("saturation").score(images)
    assert ((expected - 1 < scores) & (scores < expected)).all()
    found = {
        name: create("saturation").score(plain(*colour)).item()
        for name, colour in {
            "red": (1.0, 0.0, 0.0),
            "green": (0.0, 1.0, 0.0),
            "blue": (0.0, 0.0, 1.0),
            "yellow": (1.0, 1.0, 0.0),
        }.items()
    }
    stated = {"red": 103.6, "green": 118.8, "blue": 132.8, "yellow": 95.9}
    assert found == pytest.approx(stated, abs=0.1)
    for grey in (0.0, 0.4, 1.0):
        assert create("saturation").score(plain(grey, grey, grey)).item() < 0.01


def test_sharpness_is_the_variance_of_scipy_s_laplacian_of_pillow_s_luma(images):
    from scipy import ndimage

    for image in images:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
        luma = (image.double() * weights).sum(dim=0).numpy()
        expected = ndimage.laplace(luma).var()
        assert create("sharpness").score(image[None].double()).item() == pytest.approx(expected)


def test_sharpness_sees_a_blur_and_a_chessboard():
    grain = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    blurred = torch.nn.functional.avg_pool2d(grain, 3, stride=1)
    reward = create("sharpness")
    assert reward.score(grain).item() > 10 * reward.score(blurred).item()
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    board = board.float().expand(1, 3, 64, 64)
    assert reward.score(board).item() == pytest.approx(16, rel=0.06)


def test_the_colour_score_is_one_on_the_target_and_zero_on_its_opposite():
    reward = create("colour", colour="#ff0000")
    assert reward.score(plain(1.0, 0.0, 0.0)).item() == pytest.approx(1, abs=1e-6)
    corners = [plain(*c) for c in itertools.product((0.0, 1.0), repeat=3)]
    assert min(reward.score(c).item() for c in corners) == pytest.approx(0, abs=1e-6)
    grid = torch.rand(1, 3, 64, 64)
    assert 0 < reward.score(grid).item() < 1


def test_a_darker_red_is_nearer_to_red_than_blue_is():
    reward = create("colour", colour="#f00")
    dark, blue = reward.score(plain(0.6, 0.0, 0.0)), reward.score(plain(0.0, 0.0, 1.0))
    assert dark.item() > blue.item()


def test_colours_are_read_in_long_and_short_form():
    assert parse_colour("#336699", "c") == pytest.approx((0.2, 0.4, 0.6))
    assert parse_colour("#33669980", "c") == parse_colour("#336699", "c")
    assert parse_colour("369", "c") == pytest.approx((0.2, 0.4, 0.6))


@pytest.mark.parametrize("text", ["red", "#12345", "", "#gggggg", "#1122334"])
def test_what_is_not_a_colour_is_refused_with_an_example(text):
    with pytest.raises(RewardError, match="#ff0000"):
        create("colour", colour=text)


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_a_batch_scores_like_its_images_alone(name, images):
    reward = create(name)
    alone = torch.cat([reward.score(image[None]) for image in images])
    torch.testing.assert_close(reward.score(images), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_the_gradient_equals_central_differences(name, images, relative_gradient_error):
    # colour differences bend within 1 dE: a long step measures the bend as well
    step = 1e-6 if name in ("saturation", "palette") else 1e-5
    assert relative_gradient_error(create(name).score, images, step) < 1e-7


@pytest.mark.parametrize("name", PIXEL_REWARDS)
@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_the_gradient_is_finite_on_plain_black_white_and_red(name, colour):
    x = plain(*colour).clone().requires_grad_(True)
    create(name).score(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_the_gradient_climbs(name, images):
    reward, x = create(name), images.clone().requires_grad_(True)
    before = reward.score(x)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    after = reward.score((x + 0.02 * gradient.sign()).clamp(0, 1))
    assert (after > before).all()


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_nan_in_one_image_spoils_that_image_alone(name, images):
    images[1, 0, 3, 3] = math.nan
    scores = create(name).score(images)
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_half_precision_images_are_scored_in_float32(name, images):
    scores = create(name).score(images.half(), Context())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, create(name).score(images), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_a_picture_of_one_pixel_has_a_score_and_a_gradient(name):
    x = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).requires_grad_(True)
    score = create(name).score(x)
    score.sum().backward()
    assert torch.isfinite(score).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_an_alpha_channel_and_wrong_shapes_are_refused(name):
    with pytest.raises(RewardError, match="4 channels. Give plain RGB"):
        create(name).score(torch.rand(1, 4, 8, 8))
    with pytest.raises(RewardError, match="Give float images"):
        create(name).score(torch.rand(3, 8, 8))
    with pytest.raises(RewardError, match="Give float images"):
        create(name).score(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("name", PIXEL_REWARDS)
def test_pixel_rewards_need_no_model_and_never_change_the_images(name, images):
    reward, before = create(name), images.clone()
    reward.score(images)
    assert reward.modules == () and reward.differentiable and reward.scale > 0
    assert torch.equal(images, before)
