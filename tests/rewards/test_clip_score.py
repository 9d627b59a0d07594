from __future__ import annotations

import gc
import json
import logging
import math
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from comfyui_dno.rewards import Context, RewardError, clip_model, create

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


def test_it_scores_as_the_models_own_pipeline_does(clip_folder, reward):
    images = torch.rand(8, 3, 57, 43, generator=torch.Generator().manual_seed(1))
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
    reward.modules[0].double()
    contexts = [Context(prompts=(prompt,)) for prompt in ("cat", "dog", "red", "blue", "apple")]
    context = max(contexts, key=lambda c: float(reward.score(images[:1], c)))
    assert reward.score(images[:1], context) > 0
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
    features = clip_model.image_features(reward.clip, x)
    cosine = features @ clip_model.text_features(reward.clip, (low,))[0]
    (expected,) = torch.autograd.grad(2.5 * cosine.sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_the_template_is_put_in_front_of_the_prompt(clip_folder, images):
    plain = create("clip_score", model=str(clip_folder), template="")
    photo = create("clip_score", model=str(clip_folder))
    assert photo.template == "A photo depicts "
    expected = plain.score(images, Context(prompts=("A photo depicts cat",)))
    assert torch.equal(photo.score(images, Context(prompts=("cat",))), expected)


def test_text_features_are_computed_once(own_copy, images, monkeypatch):
    reward = create("clip_score", model=str(own_copy), template="")
    calls = []
    original = reward.clip.model.get_text_features
    monkeypatch.setattr(
        reward.clip.model, "get_text_features", lambda **k: calls.append(1) or original(**k)
    )
    for _ in range(3):
        reward.score(images, Context(prompts=("cat", "dog", "cat")))
    again = create("clip_score", model=str(own_copy), template="")
    again.score(images, CAT)
    again.score(images, CAT)
    assert len(calls) == 3


def test_a_model_is_loaded_once_while_its_files_stay_the_same(own_copy):
    first = create("clip_score", model=str(own_copy))
    second = create("clip_score", model=str(own_copy), template="drawing of ")
    assert first.modules[0] is second.modules[0]
    (own_copy / "config.json").touch()
    assert create("clip_score", model=str(own_copy)).modules[0] is not first.modules[0]


def test_only_two_unused_models_stay_in_memory(own_copy, clip_folder, tmp_path):
    for index in range(5):
        create("clip_score", model=str(shutil.copytree(own_copy, tmp_path / f"clip{index}")))
    gc.collect()
    ours = [key for key in clip_model._alive if str(tmp_path) in str(key)]
    assert len(ours) == 2


def test_the_model_is_frozen_and_fit_for_autograd_though_loaded_in_inference_mode(own_copy, images):
    with torch.inference_mode():
        reward = create("clip_score", model=str(own_copy), template="")
        reward.score(images, CAT)
    (model,) = reward.modules
    assert not model.training
    for tensor in [*model.parameters(), *model.buffers()]:
        assert not tensor.requires_grad and not tensor.is_inference()
    x = images.clone().requires_grad_(True)
    reward.score(x, CAT).sum().backward()
    assert x.grad.abs().sum() > 0


def test_half_precision_weights_stay_on_disk_and_become_float32_on_a_cpu(
    clip_factory, tmp_path, images
):
    folder = clip_factory.write_clip(tmp_path / "half", dtype=torch.float16)
    reward = create("clip_score", model=str(folder), template="")
    (model,) = reward.modules
    assert next(model.parameters()).dtype == torch.float16
    with torch.inference_mode():
        reward.score(images, CAT)
    assert next(model.parameters()).dtype == torch.float32
    x = images.clone().requires_grad_(True)
    scores = reward.score(x, CAT)
    scores.sum().backward()
    full = create("clip_score", model=str(clip_factory.write_clip(tmp_path / "full")), template="")
    torch.testing.assert_close(scores, full.score(images, CAT), atol=0.01, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu_half_precision_scores_and_gradients_agree_with_float32(
    clip_factory, tmp_path, images
):
    half = create(
        "clip_score",
        model=str(clip_factory.write_clip(tmp_path / "half", dtype=torch.float16)),
        template="",
    )
    full = create("clip_score", model=str(clip_factory.write_clip(tmp_path / "full")), template="")
    scores, gradients = [], []
    for reward in (half, full):
        reward.modules[0].to("cuda")
        x = images.to("cuda").requires_grad_(True)
        score = reward.score(x, CAT)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        scores.append(score)
        gradients.append(gradient.flatten())
    torch.testing.assert_close(scores[0], scores[1], atol=0.02, rtol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_a_prompt_over_the_token_limit_is_cut_with_a_warning_that_quotes_it(reward, images, caplog):
    prompt = "cat " * 10 + "dog apple"
    with caplog.at_level(logging.WARNING, logger="dno"):
        scores = reward.score(images, Context(prompts=(prompt,)))
    assert 'Left out: "dog apple"' in caplog.text and "12 tokens" in caplog.text
    assert torch.equal(scores, reward.score(images, Context(prompts=("cat " * 10,))))
    reward.score(images, Context(prompts=(prompt,)))
    assert len(caplog.records) == 1


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


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "merges.txt"])
def test_a_missing_file_is_named(own_copy, file):
    for name in {file, "tokenizer.json"} if file == "merges.txt" else {file}:
        (own_copy / name).unlink(missing_ok=True)
    with pytest.raises(RewardError, match=f"{file}.* is missing in .*clip copy. Download"):
        create("clip_score", model=str(own_copy))


def test_a_file_cut_short_is_named(own_copy):
    weights = own_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(RewardError, match="model.safetensors cannot be read .* Download it again"):
        create("clip_score", model=str(own_copy))


def test_weights_that_do_not_fill_the_model_are_refused(own_copy):
    from safetensors.torch import load_file, save_file

    weights = own_copy / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RewardError, match="visual_projection.weight is missing"):
        create("clip_score", model=str(own_copy))


def test_weights_of_another_shape_are_refused(own_copy):
    config = json.loads((own_copy / "config.json").read_text(encoding="utf-8"))
    config["projection_dim"] = 20
    (own_copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match="Download it again"):
        create("clip_score", model=str(own_copy))


def test_a_model_that_is_no_clip_is_refused(own_copy):
    (own_copy / "config.json").write_text('{"model_type": "siglip"}', encoding="utf-8")
    with pytest.raises(RewardError, match='type "siglip", not "clip". Choose'):
        create("clip_score", model=str(own_copy))


def test_a_spoilt_config_is_named(own_copy):
    (own_copy / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RewardError, match="config.json cannot be read"):
        create("clip_score", model=str(own_copy))
