from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.base import PixelReward
from comfyui_dno.rewards.references import fitted
from comfyui_dno.rewards.region import Limited, bounding_box, limited

EXACT = ("brightness", "darkness", "contrast", "colour", "saturation", "palette", "sharpness")


class Place:
    """Sees where things are and what it is compared with: no sum over pixels would do."""

    name, unit, scale, differentiable, modules = "place", "unit", 1.0, True, ()

    def __init__(self, aligned: bool = False) -> None:
        self.aligned = aligned
        self.seen: list[tuple[tuple[int, ...], Context]] = []

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        assert context is not None
        self.seen.append((tuple(images.shape), context))
        height, width = images.shape[-2:]
        ramp = torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 2, width)
        score = (images.square() * ramp.to(images)).mean(dim=(1, 2, 3))
        if self.aligned:
            score = score - (images - context.references).square().mean(dim=(1, 2, 3))
        return score


def rewards() -> list[tuple[object, Context]]:
    reference = torch.rand(1, 3, 41, 53, generator=torch.Generator().manual_seed(1))
    found: list[tuple[object, Context]] = [(create(name), Context()) for name in EXACT]
    found.append((create("colour_match"), Context(references=reference)))
    found.append((Place(), Context()))
    found.append((Place(aligned=True), Context(references=reference)))
    return found


@pytest.fixture
def masks() -> Tensor:
    """One soft mask for each of the three images, a different region each."""
    found = torch.zeros(3, 1, 41, 53)
    found[0, 0, 5:19, 10:30] = 1
    found[1, 0, 20:40, 2:12] = torch.linspace(0.2, 1, 20)[:, None]
    found[2, 0, 8:30, 33:50] = 0.6
    found[2, 0, 12:20, 36:40] = 1
    return found


def score(reward: object, images: Tensor, context: Context, masks: Tensor | None) -> Tensor:
    own = Context(context.prompts, context.references, masks)
    return limited(reward).score(images, own)


@pytest.mark.parametrize(("reward", "context"), rewards())
def test_what_lies_outside_the_mask_changes_neither_score_nor_gradient(
    reward, context, images, masks
):
    other = torch.where(masks > 0, images, torch.rand_like(images))
    found = []
    for each in (images, other):
        x = each.clone().requires_grad_(True)
        scores = score(reward, x, context, masks)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        found.append((scores.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)
    outside = (masks == 0).expand_as(images)
    assert found[0][1][outside].abs().max() == 0
    assert all(gradient.abs().max() > 0 for gradient in found[0][1])


@pytest.mark.parametrize(("reward", "context"), rewards())
def test_a_full_mask_is_as_no_mask(reward, context, images):
    bare = reward.score(images, context)
    for masks in (torch.ones(1, 1, 41, 53), torch.full((3, 1, 8, 8), 0.7)):
        torch.testing.assert_close(score(reward, images, context, masks), bare)
    torch.testing.assert_close(score(reward, images, context, None), bare)


@pytest.mark.parametrize(("reward", "context"), rewards())
def test_a_masked_batch_scores_like_its_images_alone(reward, context, images, masks):
    together = score(reward, images, context, masks)
    alone = [
        score(reward, images[i : i + 1], context, masks[i : i + 1]) for i in range(len(images))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    shared = score(reward, images, context, masks[:1])
    repeated = score(reward, images, context, masks[:1].repeat(3, 1, 1, 1))
    torch.testing.assert_close(shared, repeated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("reward", "context"), rewards())
def test_the_gradient_within_a_mask_equals_central_differences(
    reward, context, images, masks, relative_gradient_error
):
    references = None if context.references is None else context.references.double()
    double = Context(references=references)
    grain = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))
    # a long step changes the order of pixels, or measures the bend of colour differences
    steps = {"colour_match": 1e-9, "saturation": 1e-6, "palette": 1e-6}
    error = relative_gradient_error(
        lambda x: score(reward, x, double, masks.double()),
        images + 0.1 * grain,
        steps.get(reward.name, 1e-5),
    )
    assert error < (1e-5 if reward.name == "colour_match" else 1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_a_rectangle_scores_like_the_picture_cut_out(name, images):
    masks = torch.zeros(1, 1, 41, 53)
    masks[..., 6:26, 11:41] = 1
    cut = create(name).score(images[..., 6:26, 11:41])
    torch.testing.assert_close(
        score(create(name), images, Context(), masks), cut, rtol=1e-4, atol=1e-5
    )


def test_weights_count_as_if_pixels_were_repeated(images):
    masks = torch.zeros(1, 1, 41, 53)
    masks[..., 0, :] = 1.0
    masks[..., 1, :] = 0.5
    repeated = torch.cat((images[..., :1, :], images[..., :1, :], images[..., 1:2, :]), dim=2)
    for name in ("brightness", "contrast", "saturation", "palette"):
        torch.testing.assert_close(
            score(create(name), images, Context(), masks), create(name).score(repeated)
        )


def test_a_mask_of_another_size_is_brought_to_the_picture_s(images):
    masks = torch.zeros(1, 1, 410, 530)
    masks[..., 100:200, 100:300] = 1
    small = torch.zeros(1, 1, 41, 53)
    small[..., 10:20, 10:30] = 1
    torch.testing.assert_close(
        score(create("brightness"), images, Context(), masks),
        score(create("brightness"), images, Context(), small),
        atol=5e-3,
        rtol=0,
    )


def test_jpeg_sees_the_crop_in_the_8_bits_it_is_saved_with(images):
    masks = torch.zeros(1, 1, 100, 120)
    masks[..., 10:90, 20:100] = 1
    pictures = torch.nn.functional.interpolate(images, size=(100, 120), mode="bilinear")
    reward = create("jpeg_incompressibility")
    expected = reward.score(pictures[..., 10:90, 20:100])
    assert torch.equal(score(reward, pictures, Context(), masks), expected)
    full = torch.ones(1, 1, 100, 120)
    assert torch.equal(score(reward, pictures, Context(), full), reward.score(pictures))


def test_each_picture_s_file_is_that_of_its_own_region(images, masks):
    reward = create("jpeg_compressibility")
    together = score(reward, images, Context(), masks)
    alone = [score(reward, images[i : i + 1], Context(), masks[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    other = torch.where(masks > 0, images, torch.rand_like(images))
    assert torch.equal(score(reward, other, Context(), masks), together)
    assert not torch.equal(together, reward.score(images))


def test_a_large_picture_s_border_does_not_bleed_into_the_region():
    """Colour match shrinks large pictures, which mixes neighbours."""
    images = torch.rand(1, 3, 600, 400, generator=torch.Generator().manual_seed(2))
    masks = torch.zeros(1, 1, 600, 400)
    masks[..., 101:333, 55:222] = 1
    context = Context(references=images.flip(2)[..., :50, :50], masks=masks)
    reward = limited(create("colour_match"))
    other = torch.where(masks > 0, images, torch.zeros(1))
    torch.testing.assert_close(reward.score(other, context), reward.score(images, context))


def test_a_reward_of_another_pack_sees_a_crop_with_grey_outside():
    images = torch.rand(2, 3, 200, 300)
    masks = torch.zeros(1, 1, 200, 300)
    masks[..., 50:150, 100:180] = 1
    seen: list[Tensor] = []

    def look(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return pictures.mean(dim=(1, 2, 3))

    score(PixelReward("theirs", "unit", 1.0, look), images, Context(), masks)
    (crop,) = seen
    assert crop.shape == (2, 3, 100, 100)
    assert torch.equal(crop[..., 10:90], images[..., 50:150, 100:180])
    assert (crop[..., :10] == 0.5).all() and (crop[..., 90:] == 0.5).all()


@pytest.mark.parametrize(
    ("rows", "columns", "box"),
    [
        ((50, 150), (100, 180), (50, 150, 90, 190)),  # widened to a square
        ((0, 10), (290, 300), (0, 64, 236, 300)),  # at least 64, inside the picture
        ((0, 20), (0, 300), (0, 200, 0, 300)),  # as square as the picture allows
        ((0, 200), (0, 300), (0, 200, 0, 300)),
    ],
)
def test_the_box_is_square_where_the_picture_allows(rows, columns, box):
    region = torch.zeros(1, 1, 200, 300)
    region[..., slice(*rows), slice(*columns)] = 1
    assert bounding_box(region) == box


def test_each_image_keeps_its_prompt_and_only_aligned_rewards_get_a_cropped_reference(
    images, masks
):
    reference = torch.rand(1, 3, 82, 106)
    plain, aligned = Place(), Place(aligned=True)
    context = Context(("a", "b", "c"), reference, masks)
    Limited(plain).score(images, context)
    assert [each.prompts for _, each in plain.seen] == [("a",), ("b",), ("c",)]
    assert all(each.references is reference and each.masks is None for _, each in plain.seen)
    Limited(aligned).score(images, context)
    assert [each.references.shape[1:] for _, each in aligned.seen] == [
        shape[1:] for shape, _ in aligned.seen
    ]


def test_the_reference_is_masked_as_the_picture_is(images, masks):
    reward = Place(aligned=True)
    same = score(reward, images[:1], Context(references=images[:1]), masks[:1])
    other = torch.where(masks[:1] > 0, images[:1], torch.zeros(1))
    assert torch.equal(score(reward, images[:1], Context(references=other), masks[:1]), same)


def test_a_reference_is_fitted_without_being_stretched():
    wide = torch.zeros(1, 3, 50, 150)
    wide[..., 50:100] = 1
    assert (fitted(wide, (100, 100)) > 0.99).all()
    tall = wide.transpose(2, 3)
    assert (fitted(tall, (25, 25)) > 0.99).all()
    assert fitted(wide, (50, 150)) is wide


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (torch.zeros(1, 1, 41, 53), "the mask is empty.*disconnect the mask socket of Reward Lo"),
        (torch.zeros(3, 1, 41, 53), "mask 1 of 3 is empty"),
        (torch.full((1, 1, 41, 53), math.nan), "not numbers.*mask socket of Reward Loader"),
        (torch.full((1, 1, 41, 53), math.inf), "not numbers"),
        (torch.ones(2, 1, 41, 53), "2 masks for 3 images.*mask socket of Reward Loader"),
        (torch.ones(1, 41, 53), "Connect a MASK to the mask socket of Reward Loader"),
        (torch.ones(1, 3, 41, 53), "Connect a MASK"),
    ],
)
@pytest.mark.parametrize("name", ["brightness", "jpeg_compressibility"])
def test_a_mask_that_cannot_be_used_is_named(name, masks, said, images):
    with pytest.raises(RewardError, match=said):
        score(create(name), images, Context(), masks)


def test_a_mask_made_in_inference_mode_can_be_climbed_in(images, masks):
    with torch.inference_mode():
        frozen = masks.clone()
    for reward in (create("brightness"), Place()):
        x = images.clone().requires_grad_(True)
        score(reward, x, Context(), frozen).sum().backward()
        assert x.grad.abs().sum() > 0


def test_a_limited_reward_is_otherwise_the_reward_and_changes_nothing(images, masks):
    reward = create("clip_score")
    wrapped = limited(reward)
    assert wrapped.name == "clip_score (demo reward) (masked)"
    assert (wrapped.unit, wrapped.scale) == (reward.unit, reward.scale)
    assert wrapped.differentiable and wrapped.modules == reward.modules
    assert limited(wrapped) is wrapped
    before = images.clone(), masks.clone()
    wrapped.score(images, Context(("cat",), None, masks))
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
