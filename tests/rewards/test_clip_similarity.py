from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.clip_score import DEMO_FOLDERS
from comfyui_dno.rewards.towers.load import load_image_tower


@pytest.fixture
def reward(clip_folder):
    return create("clip_similarity", model=str(clip_folder))


@pytest.fixture
def references():
    return torch.rand(2, 3, 45, 33, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def calls(reward, monkeypatch):
    """How many pictures the tower has embedded, call by call."""
    counted, original = [], type(reward.tower).image_features

    def counting(self, images):
        counted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(type(reward.tower), "image_features", counting)
    return counted


def embeddings(folder, images):
    """Unit-length, through transformers' own processor and model."""
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    pixels = CLIPImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(array) for array in arrays], return_tensors="pt"
    )
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval().get_image_features(**pixels)
    out = getattr(out, "pooler_output", out)
    return out / out.norm(dim=-1, keepdim=True)


def test_it_is_the_mean_cosine_to_the_references_as_transformers_embeds_them(clip_folder, reward):
    pictures = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(5))
    images, references = (pictures / 255).split([3, 2])
    a, b = embeddings(clip_folder, images), embeddings(clip_folder, references)
    expected = ((a @ b[0]) + (a @ b[1])) / 2
    assert expected.std() > 0.001
    found = reward.score(images, Context(references=references))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_a_picture_is_entirely_like_itself(reward, images):
    scores = reward.score(images[:1], Context(references=images[:1]))
    assert scores.item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_equals_central_differences(
    clip_folder, images, references, relative_gradient_error, tmp_path
):
    reward = create("clip_similarity", model=str(shutil.copytree(clip_folder, tmp_path / "copy")))
    reward.modules[0].double()
    context = Context(references=references.double())
    assert relative_gradient_error(lambda x: reward.score(x, context), images[:2]) < 1e-6


def test_a_batch_scores_like_its_images_alone(reward, images, references):
    context = Context(references=references)
    alone = torch.cat([reward.score(image[None], context) for image in images])
    torch.testing.assert_close(reward.score(images, context), alone, atol=1e-6, rtol=1e-5)


def test_the_references_are_embedded_once_and_again_when_they_change(
    reward, calls, images, references
):
    for _ in range(3):
        reward.score(images, Context(references=references))
    assert calls == [2, 3, 3, 3]
    equal = reward.score(images, Context(references=references.clone()))
    assert calls[4:] == [3]
    references[0] = 0.5
    changed = reward.score(images, Context(references=references))
    assert calls[5:] == [2, 3] and not torch.equal(equal, changed)


def test_embedded_in_inference_mode_the_references_still_serve_a_gradient(
    reward, images, references
):
    with torch.inference_mode():
        plain = reward.score(images, Context(references=references * 1.0))
    x = images.clone().requires_grad_(True)
    scores = reward.score(x, Context(references=references))
    scores.sum().backward()
    assert torch.equal(scores.detach(), plain) and x.grad.abs().sum() > 0


class DistantTower:
    """It notes which device it is asked on; "meta" stands for a GPU."""

    label, width, modules = "distant", 4, ()

    def __init__(self):
        self.devices = []

    def image_features(self, images):
        self.devices.append(images.device.type)
        return torch.full((len(images), 4), 0.5)


def test_references_are_embedded_on_the_pictures_device_and_kept_off_it(images, references):
    tower = DistantTower()
    reward = create("clip_similarity", clip_vision=tower)
    reward.score(images.to("meta"), Context(references=references))
    assert tower.devices == ["meta", "meta"]
    assert [each.device.type for each in reward.seen] == ["cpu", "cpu"]


def test_the_references_take_no_gradient(reward, images, references):
    references.requires_grad_(True)
    reward.score(images.requires_grad_(True), Context(references=references)).sum().backward()
    assert references.grad is None and images.grad.abs().sum() > 0


def test_a_connected_clip_vision_is_used_in_place_of_the_model(clip_folder, images, references):
    tower = load_image_tower(clip_folder, "clip_similarity")
    connected = create("clip_similarity", model="/not/there", clip_vision=tower)
    plain = create("clip_similarity", model=str(clip_folder))
    context = Context(references=references)
    assert connected.name == "clip_similarity (CLIP_VISION)"
    assert torch.equal(connected.score(images, context), plain.score(images, context))


@pytest.mark.parametrize("model", list(DEMO_FOLDERS))
def test_the_demo_models_compare_what_the_demo_model_draws(model, images):
    reward = create("clip_similarity", model=model)
    scores = reward.score(images, Context(references=images[:1]))
    assert reward.name == f"clip_similarity ({model})"
    assert scores.argmax() == 0 and scores[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("context", [None, Context(), Context(references=torch.zeros(0, 3, 8, 8))])
def test_no_reference_is_refused_with_the_way_out(reward, images, context):
    with pytest.raises(RewardError, match="has no picture to compare with. Connect an IMAGE"):
        reward.score(images, context)


def test_a_reference_with_an_alpha_channel_is_refused(reward, images):
    with pytest.raises(RewardError, match="plain RGB picture, without alpha"):
        reward.score(images, Context(references=torch.rand(1, 4, 32, 32)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RewardError, match="nowhere"):
        create("clip_similarity", model=str(Path(tmp_path) / "nowhere"))
