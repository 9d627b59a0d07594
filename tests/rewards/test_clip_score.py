from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from comfyui_dno.rewards import REGISTRY, Context, RewardError, create
from comfyui_dno.rewards.clip_score import OTHER_SCALE
from comfyui_dno.rewards.towers.texts import cosine_scores

CAT = Context(prompts=("red cat",))


@pytest.fixture
def reward(clip_folder):
    return create("clip_score", model=str(clip_folder), template="")


@pytest.fixture
def own_copy(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip copy")


def pipeline_scores(folder, images, prompts):
    """CLIPScore through transformers' own processor, tokenizer and model."""
    model = CLIPModel.from_pretrained(folder).eval()
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    pixels = CLIPImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(a) for a in arrays], return_tensors="pt"
    )
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    return 2.5 * (out.image_embeds * out.text_embeds).sum(dim=-1).clamp(min=0)


def test_given_equal_pixels_it_scores_as_the_models_own_pipeline_does(clip_folder, reward):
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    prompts = ["red cat", "blue dog on red", "apple", "cat"] * 2
    expected = pipeline_scores(clip_folder, pixels / 255, prompts)
    found = reward.score(pixels / 255, Context(prompts=tuple(prompts)))
    assert (expected > 0).any()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_on_pictures_of_another_size_it_scores_as_the_models_own_pipeline_does(clip_folder, reward):
    coarse = torch.rand(8, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=(57, 43), mode="bilinear")
    images = (smooth * 255).round() / 255
    prompts = ["red cat", "blue dog on red", "apple", "cat"] * 2
    expected = pipeline_scores(clip_folder, images, prompts)
    found = reward.score(images, Context(prompts=tuple(prompts)))
    assert (expected > 0).any() and expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_a_batch_scores_like_its_images_alone(reward, images):
    prompts = ("red cat", "dog", "blue apple")
    alone = [
        reward.score(image[None], Context(prompts=(prompt,)))
        for image, prompt in zip(images, prompts, strict=True)
    ]
    together = reward.score(images, Context(prompts=prompts))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_one_prompt_serves_all_images(reward, images):
    one, three = reward.score(images, CAT), reward.score(images, Context(CAT.prompts * 3))
    assert torch.equal(one, three)


def test_the_gradient_equals_central_differences(own_copy, images, relative_gradient_error):
    reward = create("clip_score", model=str(own_copy), template="")
    contexts = [Context(prompts=(prompt,)) for prompt in ("cat", "dog", "red", "blue", "apple")]
    context = max(contexts, key=lambda c: float(reward.score(images[:1], c)))
    assert reward.score(images[:1], context) > 0
    reward.modules[0].double()
    error = relative_gradient_error(lambda x: reward.score(x, context), images[:1])
    assert error < 1e-6


def test_below_zero_the_score_is_zero_and_the_gradient_still_points_upwards(reward):
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    prompts = [p for p in ("cat", "dog", "red", "blue", "apple", "on", "photo")]
    low = next(p for p in prompts if (reward.score(images, Context((p,))) == 0).any())
    x = images.requires_grad_(True)
    scores = reward.score(x, Context((low,)))
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert (gradient[scores == 0].flatten(1).norm(dim=1) > 0).all()
    cosine = cosine_scores(reward.tower, x, (low,) * len(x))
    (expected,) = torch.autograd.grad(2.5 * cosine.sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_the_template_is_put_in_front_of_the_prompt(clip_folder, images):
    plain = create("clip_score", model=str(clip_folder), template="")
    photo = create("clip_score", model=str(clip_folder))
    assert photo.template == "A photo depicts "
    expected = plain.score(images, Context(prompts=("A photo depicts cat",)))
    assert torch.equal(photo.score(images, Context(prompts=("cat",))), expected)


def test_a_siglip_scores_alike(clip_factory, tmp_path, images):
    folder = clip_factory.write_siglip(tmp_path / "siglip")
    reward = create("clip_score", model=str(folder))
    assert reward.template == "A photo depicts " and reward.scale == OTHER_SCALE
    expected = 2.5 * cosine_scores(reward.tower, images, ("A photo depicts cat",) * 3)
    torch.testing.assert_close(reward.score(images, Context(("cat",))), expected.clamp(min=0))


def test_an_open_clip_folder_scores(clip_factory, tmp_path, images):
    folder = clip_factory.write_open_clip_folder(tmp_path / "open-clip")
    reward = create("clip_score", model=str(folder))
    assert reward.score(images, CAT).isfinite().all()


def test_it_scores_in_the_precision_asked_for(clip_folder, images):
    half = create("clip_score", model=str(clip_folder), template="", precision="bfloat16")
    assert next(half.modules[0].parameters()).dtype == torch.bfloat16
    scores = half.score(images, CAT)
    assert scores.dtype == torch.float32
    full = create("clip_score", model=str(clip_folder), template="").score(images, CAT)
    torch.testing.assert_close(scores, full, atol=0.02, rtol=0)


def test_its_models_to_download_are_named_with_their_licence():
    (item,) = (item for item in REGISTRY["clip_score"].inputs if item.kind == "model")
    assert item.folders and len(item.sources) == 3
    assert all(source.licence and source.page for source in item.sources)
    assert "estimated" in REGISTRY["clip_score"].scale_source


@pytest.mark.parametrize("context", [None, Context(), Context(("",)), Context(("  ", " "))])
def test_no_prompt_is_refused_with_the_way_out(reward, images, context):
    with pytest.raises(RewardError, match="has no prompt. Connect .* prompt socket"):
        reward.score(images, context)


def test_prompts_that_do_not_match_the_images_are_refused(reward, images):
    with pytest.raises(RewardError, match="2 prompts for 3 images. Give one"):
        reward.score(images, Context(prompts=("cat", "dog")))


def test_nan_in_one_image_spoils_that_image_alone(reward, images):
    images[1, 0, 20, 20] = math.nan
    assert reward.score(images, CAT).isnan().tolist() == [False, True, False]


def test_an_alpha_channel_is_refused(reward):
    with pytest.raises(RewardError, match="4 channels"):
        reward.score(torch.rand(1, 4, 32, 32), CAT)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RewardError, match="no model folder .*nowhere. Choose another"):
        create("clip_score", model=str(tmp_path / "nowhere"))


def test_another_model_is_told_by_what_it_looks_like(own_copy):
    config = json.dumps({"model_type": "llama"})
    (own_copy / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(RewardError, match='looks like a model of type "llama"'):
        create("clip_score", model=str(own_copy))
