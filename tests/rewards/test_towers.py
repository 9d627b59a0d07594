"""CLIP and SigLIP in transformers' folders, against transformers' own pipelines."""

from __future__ import annotations

import gc
import json
import math
import shutil
import string
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
)

from comfyui_dno.rewards import RewardError
from comfyui_dno.rewards.towers import cache
from comfyui_dno.rewards.towers.load import load_image_tower, load_tower
from comfyui_dno.rewards.towers.tokenizers import siglip_tokens

TEXTS = ("red cat", "A blue DOG, on red!", "apple", "cat")


@pytest.fixture(scope="module")
def folders(clip_factory, tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {
        "clip": clip_factory.write_clip(root / "clip"),
        "siglip": clip_factory.write_siglip(root / "siglip"),
        "clip vision": clip_factory.write_clip_vision(root / "clip vision"),
        "siglip vision": clip_factory.write_siglip_vision(root / "siglip vision"),
    }


@pytest.fixture
def sized():
    """Pictures of the models' own size, in 8 bits: no processor changes their pixels."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return pixels / 255


def processed(processor, images):
    arrays = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return processor(images=[Image.fromarray(each) for each in arrays], return_tensors="pt")


def unit(out):
    features = getattr(out, "pooler_output", out)
    return features / features.norm(dim=-1, keepdim=True)


def test_a_clip_embeds_as_transformers_pipeline_does(folders, sized):
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    pixels = processed(CLIPImageProcessor.from_pretrained(folders["clip"]), sized)
    tokens = AutoTokenizer.from_pretrained(folders["clip"])(
        list(TEXTS), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**tokens, **pixels)
    tower = load_tower(folders["clip"], "test")
    torch.testing.assert_close(tower.image_features(sized), out.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(tower.text_features(TEXTS), out.text_embeds, atol=1e-6, rtol=0)
    assert tower.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert tower.width == out.image_embeds.shape[1] == 16


@pytest.fixture
def siglip_tokenizer(folders, monkeypatch):
    """transformers' own, which asks for the package protobuf but does not use it."""
    from transformers.models.siglip import tokenization_siglip

    if not hasattr(tokenization_siglip, "SentencePieceBackend"):  # transformers 4 does use it
        pytest.importorskip("google.protobuf")
    else:
        monkeypatch.setattr(tokenization_siglip, "requires_backends", lambda *_: None)
    return tokenization_siglip.SiglipTokenizer.from_pretrained(folders["siglip"])


def test_a_siglip_embeds_as_transformers_pipeline_does(folders, sized, siglip_tokenizer):
    model = SiglipModel.from_pretrained(folders["siglip"]).eval()
    pixels = processed(SiglipImageProcessor.from_pretrained(folders["siglip"]), sized)
    tokens = siglip_tokenizer(
        list(TEXTS), padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], **pixels)
    tower = load_tower(folders["siglip"], "test")
    torch.testing.assert_close(tower.image_features(sized), out.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(tower.text_features(TEXTS), out.text_embeds, atol=1e-6, rtol=0)
    assert tower.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert tower.width == out.image_embeds.shape[1] == 32


@pytest.mark.parametrize(
    "text",
    ["cat", "Cat.", "  a   red\tcat ", "...", "x-ray (blue)", "photo: \u00fcber", "cat " * 20, ""]
    + [string.printable],
)
def test_siglips_text_becomes_the_tokens_that_transformers_makes(folders, siglip_tokenizer, text):
    expected = siglip_tokenizer(text, padding="max_length", truncation=True, max_length=12)
    found = siglip_tokens(folders["siglip"] / "spiece.model", 12)(text)
    assert found.ids == expected["input_ids"]


def test_siglip_2_reads_lower_case_and_a_full_row_of_tokens(clip_factory, tmp_path, sized):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = clip_factory.write_siglip(tmp_path / "siglip2")
    (folder / "spiece.model").unlink()
    words = ["<pad>", "<unk>", "red", "cat", "Red", "Cat"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    tower = load_tower(folder, "test")
    ids = torch.tensor([[2, 3, *[0] * 10]])
    with torch.no_grad():
        expected = unit(SiglipModel.from_pretrained(folder).get_text_features(input_ids=ids))
    torch.testing.assert_close(tower.text_features(("Red CAT",)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip vision", "siglip vision"])
def test_the_picture_half_alone_embeds_as_transformers_does(folders, sized, name):
    kind = CLIPVisionModelWithProjection if name == "clip vision" else SiglipVisionModel
    processor = CLIPImageProcessor if name == "clip vision" else SiglipImageProcessor
    model = kind.from_pretrained(folders[name]).eval()
    with torch.no_grad():
        out = model(**processed(processor.from_pretrained(folders[name]), sized))
    features = out.image_embeds if name == "clip vision" else out.pooler_output
    tower = load_image_tower(folders[name], "test")
    expected = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tower.image_features(sized), expected, atol=1e-6, rtol=0)
    assert tower.width == expected.shape[1]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_of_a_whole_model_the_picture_half_is_loaded_alone(clip_factory, tmp_path, name, sized):
    write = clip_factory.write_clip if name == "clip" else clip_factory.write_siglip
    folder = write(tmp_path / name)
    half = load_image_tower(folder, "test")
    assert not any("text" in key for key in half.modules[0].state_dict())
    whole = load_tower(folder, "test")
    torch.testing.assert_close(half.image_features(sized), whole.image_features(sized))
    assert half.width == whole.width


def test_the_picture_half_is_taken_from_the_whole_model_where_that_is_in_memory(own_clip):
    whole = load_tower(own_clip, "test")
    assert load_image_tower(own_clip, "test") is whole


@pytest.mark.parametrize("name", ["clip", "siglip", "clip vision", "siglip vision"])
def test_a_batch_embeds_like_its_images_alone(folders, name, images):
    tower = load_image_tower(folders[name], "test")
    alone = torch.cat([tower.image_features(image[None]) for image in images])
    torch.testing.assert_close(tower.image_features(images), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip", "siglip", "clip vision", "siglip vision"])
def test_the_gradient_equals_central_differences(
    folders, name, images, relative_gradient_error, tmp_path
):
    folder = shutil.copytree(folders[name], tmp_path / "own")
    tower = load_image_tower(folder, "test")
    tower.modules[0].double()
    way = torch.randn(tower.width, generator=torch.Generator().manual_seed(4)).double()
    error = relative_gradient_error(lambda x: tower.image_features(x) @ way, images[:1])
    assert error < 1e-6


@pytest.fixture
def own_clip(folders, tmp_path):
    return shutil.copytree(folders["clip"], tmp_path / "clip copy")


@pytest.mark.parametrize("eos_token_id", [2, 49407, 7])
def test_without_tokenizer_files_clips_own_byte_pairs_are_read_to_their_end(
    clip_factory, tmp_path, eos_token_id
):
    """2: as older configs have it, PickScore's too. 7: an end token that no text holds."""
    folder = clip_factory.write_clip(
        tmp_path / "pickscore", tokenizer=False, eos_token_id=eos_token_id
    )
    import open_clip

    ids = open_clip.tokenizer.SimpleTokenizer(context_length=12)(["A red cat, on blue"])
    end = int((ids[0] == 49407).nonzero()[0])
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model.text_model(input_ids=ids).last_hidden_state[:, end]
        expected = unit(model.text_projection(hidden))
    found = load_tower(folder, "test").text_features(("A red cat, on blue",))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_another_vocabulary_needs_its_tokenizer_files(own_clip):
    (own_clip / "merges.txt").unlink()
    with pytest.raises(RewardError, match="tokenizer.json .* is missing in .*clip copy. Download"):
        load_tower(own_clip, "test")


def test_pickled_weights_load_as_the_same_model(clip_factory, folders, tmp_path, sized):
    folder = clip_factory.write_clip(tmp_path / "bin", safetensors=False)
    assert not list(folder.glob("*.safetensors"))
    expected = load_tower(folders["clip"], "test").image_features(sized)
    assert torch.equal(load_tower(folder, "test").image_features(sized), expected)


class Trap:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_in_it_is_refused_unread(clip_factory, tmp_path, capsys):
    folder = clip_factory.write_clip(tmp_path / "trap", safetensors=False)
    torch.save({"weights": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match="could run code, and was not opened. Use a safetensors"):
        load_tower(folder, "test")
    assert "never run" not in capsys.readouterr().out


def test_a_model_is_loaded_once_for_each_precision_while_its_files_stay_the_same(own_clip):
    first = load_tower(own_clip, "test")
    assert load_tower(own_clip, "another") is first
    assert load_tower(own_clip, "test", "bfloat16") is not first
    (own_clip / "config.json").touch()
    assert load_tower(own_clip, "test") is not first


def test_two_unused_models_stay_in_memory_until_they_are_forgotten(own_clip, tmp_path):
    for index in range(5):
        load_tower(shutil.copytree(own_clip, tmp_path / f"clip{index}"), "test")
    gc.collect()

    def ours():
        return sum(str(tmp_path) in str(key) for key in cache._alive)

    assert ours() == 2
    cache.forget()
    gc.collect()
    assert ours() == 0


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip vision"])
def test_the_model_is_frozen_and_fit_for_autograd_though_loaded_in_inference_mode(
    folders, name, images, tmp_path
):
    folder = shutil.copytree(folders[name], tmp_path / "own")
    with torch.inference_mode():
        tower = load_image_tower(folder, "test")
        tower.image_features(images)
    (model,) = tower.modules
    assert not model.training
    for tensor in [*model.parameters(), *model.buffers()]:
        assert not tensor.requires_grad and not tensor.is_inference()
    x = images.clone().requires_grad_(True)
    tower.image_features(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (2, 300)])
def test_tiny_pictures_are_embedded(folders, shape):
    for name in ("clip", "siglip"):
        found = load_image_tower(folders[name], "test").image_features(torch.rand(1, 3, *shape))
        assert found.isfinite().all()


def test_nan_in_one_picture_spoils_that_picture_alone(folders, images):
    images[1, 0, 20, 20] = math.nan
    for name in ("clip", "siglip"):
        found = load_image_tower(folders[name], "test").image_features(images)
        assert found.isnan().all(dim=1).tolist() == [False, True, False]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RewardError, match="no model folder .*nowhere. Choose another"):
        load_tower(tmp_path / "nowhere", "test")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(own_clip, file):
    (own_clip / file).unlink()
    with pytest.raises(RewardError, match=f"{file} is missing in .*clip copy. Download"):
        load_tower(own_clip, "test")


def test_a_file_cut_short_is_named(own_clip):
    weights = own_clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(RewardError, match="model.safetensors cannot be read .* Download it again"):
        load_tower(own_clip, "test")


@pytest.mark.parametrize("load", [load_tower, load_image_tower])
def test_weights_that_do_not_fill_the_model_are_refused(own_clip, load):
    weights = own_clip / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RewardError, match="visual_projection.weight is missing"):
        load(own_clip, "test")


@pytest.mark.parametrize("load", [load_tower, load_image_tower])
def test_weights_of_another_shape_are_refused(own_clip, load):
    config = json.loads((own_clip / "config.json").read_text(encoding="utf-8"))
    config["projection_dim"] = 20
    (own_clip / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match="Download it again"):
        load(own_clip, "test")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, 'a model of type "llama"'),
        ({"_class_name": "UNet2DConditionModel"}, "a diffusers UNet2DConditionModel"),
        ({"model_type": "siglip2", "vision_config": {"num_patches": 256}}, "NaFlex"),
    ],
)
def test_another_model_is_told_by_what_it_looks_like(own_clip, config, found):
    (own_clip / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match=f"looks like .*{found}.*, not like CLIP or SigLIP"):
        load_tower(own_clip, "test")


def test_a_siglip_without_its_pooling_is_refused(clip_factory, tmp_path):
    folder = clip_factory.write_siglip_vision(tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RewardError, match="without the layer that makes one embedding"):
        load_image_tower(folder, "test")


def test_a_whole_pipeline_is_told_by_what_it_looks_like(tmp_path):
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RewardError, match="looks like a whole diffusers pipeline"):
        load_tower(tmp_path, "test")


def test_a_picture_half_is_no_use_where_a_prompt_is_read(folders):
    with pytest.raises(RewardError, match="holds the picture half of a model alone"):
        load_tower(folders["clip vision"], "test")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_spoilt_config_is_named(own_clip, text):
    (own_clip / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RewardError, match="config.json cannot be read"):
        load_tower(own_clip, "test")


def test_a_package_that_is_missing_is_named(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["siglip"], tmp_path / "own")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(RewardError, match=r"not installed \(sentencepiece\). Install it"):
        load_tower(folder, "test")


def test_an_unknown_precision_is_refused(folders):
    with pytest.raises(RewardError, match='no precision "int8". Choose one of auto, float32'):
        load_tower(folders["clip"], "test", "int8")
