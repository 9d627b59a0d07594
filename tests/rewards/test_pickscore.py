from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from comfyui_dno.rewards import Context, RewardError, create

PROMPTS = ("red cat", "blue dog on red", "apple")


@pytest.fixture
def reward(clip_folder):
    return create("pickscore", model=str(clip_folder))


@pytest.fixture
def small_pictures():
    """Eight-bit pictures of the small model's own size: nothing is resized."""
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(5)) / 255


def published_scores(folder, images, prompts):
    """exp(logit_scale) text . picture, through transformers' own processor, tokenizer and model."""
    model = CLIPModel.from_pretrained(folder).eval()
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    pixels = CLIPImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(array) for array in arrays], return_tensors="pt"
    )
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(prompts), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**pixels, **tokens).logits_per_image.diagonal()


def test_it_scores_as_the_models_own_pipeline_does_given_equal_pixels(
    clip_folder, reward, small_pictures
):
    expected = published_scores(clip_folder, small_pictures, PROMPTS)
    found = reward.score(small_pictures, Context(PROMPTS))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_the_trained_logit_scale_multiplies_the_cosine(clip_folder, small_pictures, tmp_path):
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    folder = shutil.copytree(clip_folder, tmp_path / "PickScore_v1")
    model.save_pretrained(folder)
    reward = create("pickscore", model=str(folder))
    expected = published_scores(folder, small_pictures, PROMPTS)
    assert reward.factor == pytest.approx(100.0, rel=1e-4) and expected.abs().max() > 5
    found = reward.score(small_pictures, Context(PROMPTS))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_the_gradient_equals_central_differences(
    clip_folder, images, relative_gradient_error, tmp_path
):
    reward = create("pickscore", model=str(shutil.copytree(clip_folder, tmp_path / "copy")))
    reward.modules[0].double()
    context = Context(PROMPTS[:2])
    assert relative_gradient_error(lambda x: reward.score(x, context), images[:2]) < 1e-6


def test_a_batch_scores_like_its_images_alone(reward, images):
    together = reward.score(images, Context(PROMPTS))
    alone = [
        reward.score(x[None], Context((prompt,))) for x, prompt in zip(images, PROMPTS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_one_prompt_serves_all_images(reward, images):
    one = reward.score(images, Context(("red cat",)))
    assert torch.equal(one, reward.score(images, Context(("red cat",) * 3)))


@pytest.mark.parametrize("context", [None, Context(), Context(("",)), Context(("  ",))])
def test_no_prompt_is_refused_with_the_way_out(reward, images, context):
    with pytest.raises(RewardError, match="pickscore has no prompt. Connect .* prompt socket"):
        reward.score(images, context)


def test_prompts_that_do_not_match_the_images_are_refused(reward, images):
    with pytest.raises(RewardError, match="2 prompts for 3 images"):
        reward.score(images, Context(("cat", "dog")))


def test_an_untuned_clip_of_another_size_is_refused_by_what_it_looks_like(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip-vit-base-patch32")
    config = CLIPConfig.from_pretrained(folder)
    for part in (config, config.text_config, config.vision_config):
        part.projection_dim = 512
    CLIPModel(config).save_pretrained(folder)
    with pytest.raises(RewardError, match="patch32 looks like CLIP ViT-B/32 .* tuned CLIP ViT-H"):
        create("pickscore", model=str(folder))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RewardError, match="pickscore"):
        create("pickscore", model=str(tmp_path / "nowhere"))
