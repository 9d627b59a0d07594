from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from comfyui_dno.rewards import RewardError, create
from comfyui_dno.rewards.aesthetic import LAYERS, patch_size
from comfyui_dno.rewards.affine_head import fold, layers_in

WIDTH = 16  # of the small CLIP
HIDDEN = (1024, 128, 64, 16)


class PublishedV2(nn.Module):
    """The layers of LAION's v2 predictor, with dropout where it has it."""

    def __init__(self, width=WIDTH):
        super().__init__()
        a, b, c, d = HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(width, a),
            nn.Dropout(0.2),
            nn.Linear(a, b),
            nn.Dropout(0.2),
            nn.Linear(b, c),
            nn.Dropout(0.1),
            nn.Linear(c, d),
            nn.Linear(d, 1),
        )

    def forward(self, x):
        return self.layers(x)[:, 0]


class PublishedV25(nn.Module):
    """The layers of Aesthetic Predictor V2.5."""

    def __init__(self, width):
        super().__init__()
        a, b, c, d = HIDDEN
        self.scoring_head = nn.Sequential(
            nn.Linear(width, a),
            nn.Dropout(0.5),
            nn.Linear(a, b),
            nn.Dropout(0.5),
            nn.Linear(b, c),
            nn.Dropout(0.5),
            nn.Linear(c, d),
            nn.Dropout(0.2),
            nn.Linear(d, 1),
        )

    def forward(self, x):
        return self.scoring_head(x)[:, 0]


class FakeTower:
    """Embeds pictures by a fixed projection of their 4 x 4 means."""

    label = "fake tower"
    modules = ()

    def __init__(self, width):
        self.width = width
        self.projection = torch.randn(48, width, generator=torch.Generator().manual_seed(4))

    def image_features(self, images):
        small = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return nn.functional.normalize(small @ self.projection.to(images), dim=-1)


def trained(module, seed=0):
    """As if trained: weights that are not small, so that every layer counts."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=1.5 / max(parameter.shape) ** 0.5)
    return module.eval()


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """A head and the file LAION's code would save it to."""
    module = trained(PublishedV2())
    file = tmp_path_factory.mktemp("heads") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(module.state_dict(), file)
    return module, file


@pytest.fixture
def small_pictures():
    """Eight-bit pictures of the small models' own size: nothing is resized."""
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(5)) / 255


def pils(images):
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(array) for array in arrays]


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def clip_embeddings(folder, images):
    """Through transformers' own processor and model."""
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=pils(images), return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval().get_image_features(**pixels)
    return unit(getattr(out, "pooler_output", out))


def aesthetic(head, model, **inputs):
    return create("aesthetic", head=str(head), model=str(model), **inputs)


def test_v2_scores_as_the_published_layers_on_transformers_embeddings(
    v2, clip_folder, small_pictures
):
    module, file = v2
    reward = aesthetic(file, clip_folder)
    with torch.no_grad():
        expected = module(clip_embeddings(clip_folder, small_pictures))
    assert reward.name == "aesthetic v2" and expected.std() > 0.01
    torch.testing.assert_close(reward.score(small_pictures), expected, atol=2e-5, rtol=1e-5)


def test_v1_is_one_linear_layer(clip_folder, small_pictures, tmp_path):
    module = trained(nn.Linear(WIDTH, 1))
    torch.save(module.state_dict(), tmp_path / "sa_0_4_vit_b_32_linear.pth")
    reward = aesthetic(tmp_path / "sa_0_4_vit_b_32_linear.pth", clip_folder)
    with torch.no_grad():
        expected = module(clip_embeddings(clip_folder, small_pictures))[:, 0]
    assert reward.name == "aesthetic v1"
    torch.testing.assert_close(reward.score(small_pictures), expected, atol=2e-5, rtol=1e-5)


def test_v25_scores_as_its_bfloat16_layers_on_siglips_pooled_embedding(small_pictures, tmp_path):
    folder, head = tmp_path / "siglip", tmp_path / "aesthetic_predictor_v2_5.pth"
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    tower = trained(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8)))
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    module = trained(PublishedV25(24)).bfloat16()
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.save(module.state_dict(), head)
    reward = create("aesthetic_v25", head=str(head), model=str(folder))
    pixels = processor(images=pils(small_pictures), return_tensors="pt")
    with torch.no_grad():
        expected = module.float()(unit(tower(**pixels).pooler_output))
    assert expected.std() > 0.01
    torch.testing.assert_close(reward.score(small_pictures), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", ["v2", "v25"])
def test_the_folded_head_equals_the_published_layers_one_after_another(version):
    module = trained(PublishedV2(768) if version == "v2" else PublishedV25(1152)).double()
    names = LAYERS["v2"] if version == "v2" else [f"scoring_head.{i}" for i in (0, 2, 4, 6, 8)]
    state = module.state_dict()
    head = fold(layers_in(state, names))
    x = unit(torch.randn(5, len(head.weight), dtype=torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(head(x), module(x), atol=1e-12, rtol=1e-12)


def test_the_published_shapes_load(tmp_path):
    torch.save(trained(PublishedV2(768)).state_dict(), tmp_path / "v2.pth")
    save_file(trained(nn.Linear(512, 1)).state_dict(), tmp_path / "v1.safetensors")
    for file, width in (("v2.pth", 768), ("v1.safetensors", 512)):
        reward = aesthetic(tmp_path / file, "", clip_vision=FakeTower(width))
        assert reward.score(torch.rand(2, 3, 20, 20)).shape == (2,)


def test_the_gradient_equals_central_differences(
    v2, clip_folder, images, relative_gradient_error, tmp_path
):
    folder = shutil.copytree(clip_folder, tmp_path / "clip copy")
    reward = aesthetic(v2[1], folder)
    reward.modules[0].double()
    assert relative_gradient_error(reward.score, images[:2]) < 1e-6


def test_a_batch_scores_like_its_images_alone(v2, clip_folder, images):
    reward = aesthetic(v2[1], clip_folder)
    alone = torch.cat([reward.score(image[None]) for image in images])
    torch.testing.assert_close(reward.score(images), alone, atol=1e-5, rtol=1e-5)


def test_loaded_in_inference_mode_it_still_has_a_gradient(v2, clip_folder, images, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip copy")
    with torch.inference_mode():
        reward = aesthetic(v2[1], folder)
        plain = reward.score(images)
    x = images.clone().requires_grad_(True)
    scores = reward.score(x)
    scores.sum().backward()
    assert torch.equal(scores.detach(), plain) and x.grad.abs().sum() > 0


def test_a_connected_clip_vision_is_used_in_place_of_the_model(v2, tmp_path):
    tower = FakeTower(WIDTH)
    reward = aesthetic(v2[1], tmp_path / "not there", clip_vision=tower)
    pictures = torch.rand(2, 3, 20, 20)
    with torch.no_grad():
        expected = v2[0](tower.image_features(pictures))
    assert reward.modules == ()
    torch.testing.assert_close(reward.score(pictures), expected, atol=2e-5, rtol=1e-5)


def test_a_head_for_another_tower_is_refused_with_the_tower_it_needs(clip_folder, tmp_path):
    torch.save(trained(PublishedV2(768)).state_dict(), tmp_path / "v2.pth")
    with pytest.raises(RewardError, match=r"v2.pth reads .* 768 \(CLIP ViT-L/14\), but small-clip"):
        aesthetic(tmp_path / "v2.pth", clip_folder)
    with pytest.raises(
        RewardError, match=r"fake tower gives 512 \(CLIP ViT-B/32 or .* Give it the tower"
    ):
        aesthetic(tmp_path / "v2.pth", "", clip_vision=FakeTower(512))


def test_a_head_with_activations_between_its_layers_is_refused(tmp_path):
    state = trained(PublishedV2()).state_dict()
    names = dict(zip((0, 2, 4, 6, 7), (0, 3, 6, 9, 11), strict=True))  # the published ReLU variant
    relu = {f"layers.{names[int(k.split('.')[1])]}.{k.split('.')[2]}": v for k, v in state.items()}
    torch.save(relu, tmp_path / "ava+logos-l14-reluMSE.pth")
    with pytest.raises(
        RewardError, match="aesthetic: .*reluMSE.pth .*not like LAION's linear heads"
    ):
        aesthetic(tmp_path / "ava+logos-l14-reluMSE.pth", "")


@pytest.mark.parametrize("spoil", ["a layer less", "a layer more", "misfit", "two outputs"])
def test_layers_that_are_not_the_published_ones_are_refused(v2, tmp_path, spoil):
    state = dict(v2[0].state_dict())
    if spoil == "a layer less":
        del state["layers.7.bias"]
    elif spoil == "a layer more":
        state["layers.9.weight"] = torch.zeros(1, 1)
    elif spoil == "misfit":
        state["layers.2.weight"] = torch.zeros(128, 1000)
    else:
        state |= {"layers.7.weight": torch.zeros(2, 16), "layers.7.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(RewardError, match="not like LAION's linear heads"):
        aesthetic(tmp_path / "head.pth", "")


def test_a_wrong_file_is_told_by_what_it_looks_like(tmp_path):
    lora = {"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 8)}
    save_file(lora, tmp_path / "style.safetensors")
    for name in ("aesthetic", "aesthetic_v25"):
        with pytest.raises(RewardError, match=r"style.safetensors looks like a LoRA"):
            create(name, head=str(tmp_path / "style.safetensors"))
    torch.save(trained(PublishedV2(768)).state_dict(), tmp_path / "v2.pth")
    with pytest.raises(RewardError, match="v2.pth looks like a LAION aesthetic v2 head, not .*2.5"):
        create("aesthetic_v25", head=str(tmp_path / "v2.pth"))


def test_a_missing_head_is_named(tmp_path):
    with pytest.raises(RewardError, match="nowhere.pth"):
        aesthetic(tmp_path / "nowhere.pth", "")


def test_an_alpha_channel_is_refused(v2):
    reward = aesthetic(v2[1], "", clip_vision=FakeTower(WIDTH))
    with pytest.raises(RewardError, match="4 channels"):
        reward.score(torch.rand(1, 4, 32, 32))


@pytest.mark.parametrize(("precision", "points"), [("float16", 0.002), ("bfloat16", 0.01)])
def test_half_precision_stays_within_its_bounds(v2, clip_folder, images, precision, points):
    scores, gradients = [], []
    for kind in ("float32", precision):
        x = images.clone().requires_grad_(True)
        score = aesthetic(v2[1], clip_folder, precision=kind).score(x)
        gradients.append(torch.autograd.grad(score.sum(), x)[0].flatten())
        scores.append(score.detach())
    torch.testing.assert_close(scores[1], scores[0], atol=points, rtol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def clip_like(folder, clip_folder, activation):
    """The small CLIP with another activation, as retrainings of OpenAI's have it."""
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in ("text_config", "vision_config"):
        config[part]["hidden_act"] = activation
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_clip_of_the_right_width_that_is_not_openais_is_warned_of(
    v2, clip_folder, tmp_path, caplog
):
    head = shutil.copy(v2[1], tmp_path / "head.pth")
    aesthetic(head, clip_folder)
    assert not caplog.records
    aesthetic(head, clip_like(tmp_path / "laions", clip_folder, "gelu"))
    assert "laions does not look like the CLIP" in caplog.text
    assert "quick_gelu" in caplog.text


def test_an_open_clip_tower_is_told_by_its_activation_as_well(v2, clip_factory, tmp_path, caplog):
    aesthetic(v2[1], clip_factory.write_open_clip_folder(tmp_path / "gelu"))
    assert "gelu does not look like the CLIP" in caplog.text


def test_a_head_for_another_patch_size_is_warned_of(clip_folder, tmp_path, caplog):
    state = {"weight": torch.randn(1, WIDTH), "bias": torch.zeros(1)}
    for name in ("sa_0_4_vit_b_32_linear.pth", "my_own.pth"):
        caplog.clear()
        torch.save(state, tmp_path / name)
        aesthetic(tmp_path / name, clip_folder)
        assert ("its patches have 8 pixels a side, not 32" in caplog.text) == ("b_32" in name)


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("sac+logos+ava1-l14-linearMSE.pth", 14),
        ("sa_0_4_vit_l_14_linear.pth", 14),
        ("sa_0_4_vit_b_32_linear.pth", 32),
        ("sa_0_4_vit_b_16_linear.pth", 16),
        ("my_label_14.pth", None),
    ],
)
def test_the_published_heads_names_tell_their_clips_patch_size(name, patch):
    assert patch_size(Path(name)) == patch
