from __future__ import annotations

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.hps import version_of

PROMPTS = ("a red cat", "A blue dog, on red!", "apple")


def small_model():
    """open_clip's ViT-H-14 at a small size: heads of 80 and 64, gelu, its whole vocabulary."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=160, head_width=80, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=128, heads=2, layers=2)
    model = CLIP(24, vision, text).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" not in name and parameter.ndim > 1:
                parameter.mul_(4)  # as trained: the embeddings differ from picture to picture
    return model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """As the HPS checkpoints are written."""
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def reward(file):
    return create("hps", model=str(file))


def pictures(height, width):
    """Eight-bit pictures."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, 3, height, width), generator=generator) / 255


def published_scores(model, images, prompts):
    """The diagonal of the cosines, through open_clip's own transform, tokenizer and model."""
    transform = image_transform_v2(
        PreprocessCfg(size=32, resize_mode="longest", interpolation="bicubic"), is_train=False
    )
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    pixels = torch.stack([transform(Image.fromarray(array)) for array in arrays])
    tokens = open_clip.get_tokenizer("ViT-H-14")(list(prompts))
    with torch.no_grad():
        image, text, _ = model(pixels, tokens)
    return (image @ text.T).diagonal()


def test_it_scores_as_open_clips_own_pipeline_does_given_equal_pixels(model, reward):
    images = pictures(32, 32)
    expected = published_scores(model, images, PROMPTS)
    assert reward.name == "hps v2.1" and expected.std() > 0.01
    found = reward.score(images, Context(PROMPTS))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_a_wide_picture_is_padded_as_the_published_code_does(model, reward):
    images = pictures(16, 32)  # already of the right length: only the padding acts
    expected = published_scores(model, images, PROMPTS)
    found = reward.score(images, Context(PROMPTS))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_safetensors_hold_the_same_model(model, reward, tmp_path):
    save_file(model.state_dict(), tmp_path / "HPS_v2.1.safetensors")
    other = create("hps", model=str(tmp_path / "HPS_v2.1.safetensors"))
    context = Context(PROMPTS)
    assert torch.equal(
        other.score(pictures(32, 32), context), reward.score(pictures(32, 32), context)
    )


def test_the_gradient_equals_central_differences(file, images, relative_gradient_error, tmp_path):
    reward = create("hps", model=str(shutil.copy(file, tmp_path)))
    reward.modules[0].double()
    context = Context(PROMPTS[:2])
    assert relative_gradient_error(lambda x: reward.score(x, context), images[:2]) < 1e-6


def test_a_batch_scores_like_its_images_alone(reward, images):
    together = reward.score(images, Context(PROMPTS))
    alone = [
        reward.score(x[None], Context((prompt,))) for x, prompt in zip(images, PROMPTS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("HPS_v2.1_compressed.pt", "v2.1"),
        ("HPS_v2_compressed.pt", "v2"),
        ("HPSv2.1.safetensors", "v2.1"),
        ("hps2.pt", "v2"),
        ("hps_v2-0.pt", "v2"),
        ("hpsv21.safetensors", "v2.1"),
    ],
)
def test_the_version_is_read_off_the_files_name(name, version):
    assert version_of(Path(name)) == version


def test_a_name_that_does_not_tell_the_version_is_refused_with_the_way_out(file, tmp_path):
    renamed = shutil.copy(file, tmp_path / "preference-2024.pt")
    with pytest.raises(RewardError, match="preference-2024.pt does not tell .* Choose v2.1 or v2"):
        create("hps", model=str(renamed))
    assert create("hps", model=str(renamed), version="v2").name == "hps v2"


def test_v21_spreads_wider_than_v2(file):
    first, second = (create("hps", model=str(file), version=version) for version in ("v2", "v2.1"))
    assert second.scale > 1.5 * first.scale
    assert first.modules[0] is second.modules[0]


def test_another_checkpoint_is_told_by_what_it_looks_like(tmp_path):
    save_file(
        {"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 8)},
        tmp_path / "hps_v2.1.safetensors",
    )
    with pytest.raises(RewardError, match="hps v2.1: .* looks like a LoRA"):
        create("hps", model=str(tmp_path / "hps_v2.1.safetensors"))


def test_no_prompt_is_refused_with_the_way_out(reward, images):
    with pytest.raises(RewardError, match="hps v2.1 has no prompt. Connect"):
        reward.score(images, Context())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RewardError, match="HPS_v2.1_compressed.pt"):
        create("hps", model=str(tmp_path / "HPS_v2.1_compressed.pt"))


@pytest.mark.parametrize(("precision", "cosine"), [("float16", 0.001), ("bfloat16", 0.02)])
def test_half_precision_stays_within_its_bounds(file, images, precision, cosine):
    scores, gradients = [], []
    for kind in ("float32", precision):
        x = images.clone().requires_grad_(True)
        score = create("hps", model=str(file), precision=kind).score(x, Context(PROMPTS))
        gradients.append(torch.autograd.grad(score.sum(), x)[0].flatten())
        scores.append(score.detach())
    torch.testing.assert_close(scores[1], scores[0], atol=cosine, rtol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
