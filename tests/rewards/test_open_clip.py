"""open_clip's folders and HPS's single file, against open_clip's own pipelines."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from torchvision.transforms.functional import to_pil_image

from comfyui_dno.rewards import RewardError
from comfyui_dno.rewards.towers.load import load_image_tower, load_tower
from comfyui_dno.rewards.towers.open_clip_tower import load_open_clip_file

TEXTS = ("red cat", "A blue DOG, on red!", "cat")
LONG = "cat " * 90


@pytest.fixture(scope="module")
def hps(clip_factory, tmp_path_factory):
    return clip_factory.write_hps(tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "custom text"])
def folder(request, clip_factory, tmp_path_factory):
    root = tmp_path_factory.mktemp("open_clip")
    return clip_factory.write_open_clip_folder(root / "open-clip", custom_text=request.param)


@pytest.fixture
def sized():
    """Pictures of the models' own size, in 8 bits: no transform changes their pixels."""
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return pixels / 255


def assert_embeds_like(tower, model, transform, tokenizer, images, texts):
    pixels = torch.stack([transform(to_pil_image(image)) for image in images])
    with torch.no_grad():
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer(list(texts)), normalize=True)
    torch.testing.assert_close(tower.image_features(images), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(tower.text_features(tuple(texts)), text, atol=1e-5, rtol=0)
    assert tower.width == image.shape[1]
    assert tower.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_a_folder_embeds_as_open_clip_does(folder, sized):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tower = load_tower(folder, "test")
    assert_embeds_like(tower, model.eval(), transform, tokenizer, sized, [*TEXTS, LONG])


def test_hps_embeds_as_open_clips_own_class_does(hps, clip_factory, sized):
    transform = image_transform(32, is_train=False, resize_mode="longest")
    tower = load_open_clip_file(hps, "test", longest_side=True)
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    assert_embeds_like(tower, clip_factory.hps_model(), transform, tokenizer, sized, [*TEXTS, LONG])


def test_the_sizes_in_a_file_are_vit_h_14s(clip_factory):
    """The heads cannot be read off the weights: they are those of the published config."""
    config = open_clip.get_model_config("ViT-H-14")
    assert config["vision_cfg"]["head_width"] == 80
    assert config["text_cfg"]["width"] // config["text_cfg"]["heads"] == 64
    assert not config.get("quick_gelu")


def test_a_safetensors_file_in_half_precision_embeds_alike(clip_factory, hps, tmp_path, sized):
    half = clip_factory.write_hps(tmp_path / "hps.safetensors", dtype=torch.float16)
    tower = load_open_clip_file(half, "test", longest_side=True)
    assert next(tower.modules[0].parameters()).dtype == torch.float16
    found = tower.image_features(sized)
    assert next(tower.modules[0].parameters()).dtype == torch.float32  # on a CPU
    expected = load_open_clip_file(hps, "test", longest_side=True).image_features(sized)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_file_can_be_cropped_like_other_clips(hps):
    wide = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    cropped, whole = (
        load_open_clip_file(hps, "test", longest_side=longest) for longest in (False, True)
    )
    middle = wide[..., 16:48]
    torch.testing.assert_close(cropped.image_features(wide), whole.image_features(middle))
    assert not torch.allclose(whole.image_features(wide), whole.image_features(middle), atol=0.01)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_batch_embeds_like_its_images_alone(hps, clip_factory, tmp_path, images, kind):
    tower = load_tower(
        hps if kind == "file" else clip_factory.write_open_clip_folder(tmp_path / "oc"), "test"
    )
    alone = torch.cat([tower.image_features(image[None]) for image in images])
    torch.testing.assert_close(tower.image_features(images), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_gradient_equals_central_differences(
    hps, clip_factory, tmp_path, images, kind, relative_gradient_error
):
    if kind == "file":
        tower = load_open_clip_file(shutil.copy(hps, tmp_path / "own.pt"), "test", "auto", True)
    else:
        tower = load_tower(clip_factory.write_open_clip_folder(tmp_path / "oc"), "test")
    tower.modules[0].double()
    way = torch.randn(tower.width, generator=torch.Generator().manual_seed(4)).double()
    assert relative_gradient_error(lambda x: tower.image_features(x) @ way, images[:1]) < 1e-6


def test_the_file_is_loaded_once(hps):
    first = load_open_clip_file(hps, "test", longest_side=True)
    assert load_open_clip_file(hps, "another", longest_side=True) is first
    assert load_open_clip_file(hps, "test", "float16", longest_side=True) is not first


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_it_is_frozen_and_fit_for_autograd_though_loaded_in_inference_mode(
    clip_factory, tmp_path, images, kind
):
    with torch.inference_mode():
        if kind == "file":
            path = clip_factory.write_hps(tmp_path / "hps.pt", dtype=torch.float16)
            tower = load_open_clip_file(path, "test", longest_side=True)
        else:
            folder = clip_factory.write_open_clip_folder(tmp_path / "oc", dtype=torch.float16)
            tower = load_image_tower(folder, "test")
        tower.image_features(images)
        tower.text_features(("cat",))
    (model,) = tower.modules
    assert not model.training
    for tensor in [*model.parameters(), *model.buffers()]:
        assert not tensor.requires_grad and not tensor.is_inference() and not tensor.is_meta
    x = images.clone().requires_grad_(True)
    tower.image_features(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("gone", ["visual.proj", "transformer.resblocks.1.ln_1.weight"])
def test_a_file_with_a_hole_is_refused(hps, tmp_path, gone):
    saved = torch.load(hps, weights_only=True)
    del saved["state_dict"][gone]
    torch.save(saved, tmp_path / "hole.pt")
    with pytest.raises(RewardError, match="hole.pt looks like .*, not like an open_clip ViT-H-14"):
        load_open_clip_file(tmp_path / "hole.pt", "hps")


def test_another_checkpoint_is_told_by_what_it_looks_like(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(1024, 768)}, tmp_path / "other.pth")
    with pytest.raises(RewardError, match="other.pth looks like .*, not like an open_clip ViT-H"):
        load_open_clip_file(tmp_path / "other.pth", "hps")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RewardError, match="there is no file .*nowhere.pt"):
        load_open_clip_file(tmp_path / "nowhere.pt", "hps")


def test_a_folder_without_weights_is_named(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "open_clip_model.safetensors").unlink()
    with pytest.raises(RewardError, match="open_clip_model.safetensors is missing in .*own"):
        load_tower(own, "test")


def test_weights_that_do_not_fit_the_config_are_named(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((own / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["embed_dim"] = 24
    (own / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match="open_clip_model.safetensors cannot be read"):
        load_tower(own, "test")


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}),
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/something"}),
    ],
)
def test_a_folder_that_would_download_another_model_is_refused(folder, tmp_path, part, setting):
    own = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((own / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"][part].update(setting)
    (own / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match="which would have to be downloaded. Choose a model"):
        load_tower(own, "test")


def test_a_folder_in_both_formats_is_read_as_transformers(clip_factory, tmp_path):
    both = clip_factory.write_clip(tmp_path / "both")
    clip_factory.write_open_clip_folder(both, seed=1)
    plain = clip_factory.write_clip(tmp_path / "plain")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(
        load_tower(both, "test").image_features(x), load_tower(plain, "test").image_features(x)
    )
