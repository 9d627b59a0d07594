"""Colours that were listed, and colours of a reference picture."""

from __future__ import annotations

import math

import pytest
import torch

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.colour_match import axes, pixels_of, squared_transport
from comfyui_dno.rewards.lab import differences, lab
from comfyui_dno.rewards.palette import parse_palette

RED, BLUE, WHITE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)


def stripes(*colours: tuple[float, float, float], size: int = 12) -> torch.Tensor:
    rows = torch.tensor(colours).T.view(1, 3, len(colours), 1)
    return rows.repeat_interleave(size, dim=2).expand(-1, -1, -1, size)


def palette(colours: str, image: torch.Tensor, coverage: float = 0.3) -> float:
    return create("palette", colours=colours, coverage=coverage).score(image).item()


def score_against(reference: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return create("colour_match").score(images, Context(references=reference))


def test_the_palette_score_is_one_for_a_picture_of_all_its_colours_in_equal_shares():
    assert palette("#f00 #00f #fff", stripes(RED, BLUE, WHITE)) == pytest.approx(1, abs=1e-3)


def test_without_coverage_one_of_the_colours_is_enough_and_the_nearest_counts():
    assert palette("#f00, #00f", stripes(RED), coverage=0) == pytest.approx(1, abs=1e-3)
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    nearest = differences(image, [RED, BLUE]).amin(dim=1).mean().item()
    assert palette("#f00, #00f", image, coverage=0) == pytest.approx(1 - nearest / 100, abs=3e-3)


def test_with_coverage_a_missing_colour_costs_its_distance_and_a_small_share_little():
    colours = "#f00 #00f"
    none = palette(colours, stripes(RED), coverage=1.0)
    few = palette(colours, stripes(RED, RED, RED, BLUE), coverage=1.0)
    equal = palette(colours, stripes(RED, BLUE), coverage=1.0)
    assert none < few - 0.3 < few < equal == pytest.approx(1, abs=1e-3)
    expected = 1 - 0.5 * 10 * (math.log(1 / 1.5) + math.log(2)) / 100
    assert few == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("coverage", "blue"), [(0.0, False), (0.5, True)])
def test_climbing_with_coverage_brings_a_missing_colour_into_the_picture(coverage, blue):
    reward = create("palette", colours="#f00 #00f", coverage=coverage)
    grain = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    x = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1) + 0.1 * grain
    for _ in range(150):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(reward.score(x).sum(), x)
        x = (x + 0.02 * slope.sign()).clamp(0, 1)
    distances = differences(x.detach(), [RED, BLUE])
    assert bool(distances[:, 1].min() < 10) is blue
    assert distances.amin(dim=1).mean() < 10


def test_a_palette_is_read_with_any_separator_and_without_repeats():
    assert parse_palette("#f00,#00f;\n #FF0000  fff ") == (RED, BLUE, WHITE)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has no colours"), ("#f00, blue", '"blue" is not a colour'), ("x" * 3, "is not")],
)
def test_what_is_no_palette_is_refused(text, said):
    with pytest.raises(RewardError, match=said):
        create("palette", colours=text)


def test_more_than_sixteen_colours_are_refused():
    with pytest.raises(RewardError, match="has 17 colours. List at most 16"):
        create("palette", colours=" ".join(f"#0000{i:02x}" for i in range(17)))


def test_the_axes_measure_every_shift_alike():
    frame = axes(torch.zeros(1, dtype=torch.float64))
    assert frame.shape == (13, 3)
    identity = torch.eye(3, dtype=torch.float64) / 3
    torch.testing.assert_close(frame.T @ frame / 13, identity)


@pytest.mark.parametrize("size", [(9, 11), (7, 5)])
def test_on_every_axis_the_distance_is_scipy_s(images, size):
    """W1 by scipy between the same sets; ours squared, from the same quantiles: by numpy."""
    from scipy import stats

    generator = torch.Generator().manual_seed(8)
    one = torch.rand(1, 3, 9, 11, generator=generator, dtype=torch.float64)
    two = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
    mine, theirs = pixels_of(one), pixels_of(two)
    found = squared_transport(mine, theirs)[0]
    fine = torch.arange(9 * 11 * 35, dtype=torch.float64).add(0.5).div(9 * 11 * 35)
    for axis, direction in enumerate(axes(one)):
        a = (direction @ lab(one).flatten(2)[0]).numpy()
        b = (direction @ lab(two).flatten(2)[0]).numpy()
        # at the middles of a grid that both step on, the quantile functions are exact
        left = torch.from_numpy(a).sort().values[(fine * len(a)).long()]
        right = torch.from_numpy(b).sort().values[(fine * len(b)).long()]
        assert (left - right).abs().mean().item() == pytest.approx(
            stats.wasserstein_distance(a, b), rel=1e-9
        )
        assert found[axis].item() == pytest.approx((left - right).square().mean().item(), rel=1e-9)


def test_the_same_colours_elsewhere_and_at_another_size_score_zero(images):
    pieces = images[:1].flatten(2)[..., torch.randperm(41 * 53)].view(1, 3, 41, 53)
    assert score_against(images[:1], pieces).item() == pytest.approx(0, abs=1e-4)
    wide = images[:1].repeat(1, 1, 2, 3)
    assert score_against(wide, images[:1]).item() == pytest.approx(0, abs=1e-3)
    assert score_against(stripes(WHITE), stripes((0.0, 0.0, 0.0))).item() == pytest.approx(
        -99, abs=0.1
    )


def test_large_pictures_are_compared_shrunk_with_nearly_the_same_score(images):
    large = torch.nn.functional.interpolate(images, scale_factor=13, mode="bilinear")
    other = images.flip(0).clone()
    torch.testing.assert_close(
        score_against(other, large), score_against(other, images), atol=0.15, rtol=0
    )


def test_several_references_count_as_one_picture(images):
    two = torch.cat((stripes(RED), stripes(BLUE)))
    both = stripes(RED, BLUE)
    torch.testing.assert_close(score_against(two, images), score_against(both, images))


def test_the_gradient_of_the_colour_match_equals_central_differences(
    images, relative_gradient_error
):
    context = Context(references=images.flip(0)[:1, :, :20, :31].double())

    def score(x: torch.Tensor) -> torch.Tensor:
        return create("colour_match").score(x, context)

    # where two pixels are equal on an axis the order of both is a kink: none are, and none cross
    grain = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))
    few = (images + 0.1 * grain)[:, :, :12, :14]
    assert relative_gradient_error(score, few, 1e-7) < 1e-6


def test_climbing_the_colour_match_reaches_the_reference(images):
    x = images[:1].clone().requires_grad_(True)
    reference = stripes((0.8, 0.3, 0.2), (0.2, 0.4, 0.7), (0.9, 0.9, 0.5))
    before = score_against(reference, x).item()
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (-score_against(reference, x)).sum().backward()
        optimizer.step()
    assert before < -30 and score_against(reference, x).item() > before / 4


def test_a_batch_scores_like_its_images_alone_and_nan_spoils_one(images):
    reference = stripes(RED, WHITE)
    scores = score_against(reference, images)
    alone = torch.cat([score_against(reference, image[None]) for image in images])
    torch.testing.assert_close(scores, alone)
    images[1, 0, 3, 3] = math.nan
    assert score_against(reference, images).isnan().tolist() == [False, True, False]


def test_the_gradient_is_finite_on_plain_pictures_and_on_the_reference_itself(images):
    for picture in (stripes(RED), stripes(WHITE), torch.zeros(1, 3, 1, 1)):
        x = picture.clone().requires_grad_(True)
        score_against(picture, x).sum().backward()
        assert torch.isfinite(x.grad).all()


def test_a_reference_made_in_inference_mode_can_be_climbed_towards(images):
    with torch.inference_mode():
        reference = images.flip(0).clone()
    x = images.clone().requires_grad_(True)
    score_against(reference, x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (None, "has no picture to compare with. Connect an IMAGE to the reference socket"),
        (torch.zeros(0, 3, 8, 8), "has no picture"),
        (torch.rand(1, 4, 8, 8), "without alpha"),
        (torch.full((1, 3, 8, 8), math.nan), "not numbers"),
    ],
)
def test_a_missing_or_broken_reference_is_named(images, reference, said):
    with pytest.raises(RewardError, match=said):
        create("colour_match").score(images, Context(references=reference))
