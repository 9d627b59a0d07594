"""Weights files: read without running what is in them, told apart, and refused with words."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comfyui_dno.rewards.base import RewardError
from comfyui_dno.rewards.files.checkpoint import looks_like, read_weights, wrong_checkpoint

WEIGHTS = {"head.weight": torch.arange(90_000.0).reshape(300, 300), "head.bias": torch.ones(3)}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        torch.equal(found[key], wanted[key]) for key in wanted
    )


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_safetensors_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name)
    found = read_weights(tmp_path / name, "reward")
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in WEIGHTS.items()
    }


def test_safetensors_is_read_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    begins = set()
    for length in range(1, 260):
        file = tmp_path / "head.safetensors"
        save_file({"w" * length: torch.ones(2)}, file)
        begins.add(file.read_bytes()[:1])
        assert list(read_weights(file, "r")) == ["w" * length]
    assert b"\x80" in begins  # which is how a pickle begins


def test_a_safetensors_file_may_begin_with_the_byte_of_a_pickle(tmp_path: Path) -> None:
    """Its first byte is the lowest of the header's length, a multiple of 8: 0x80 is one of 32."""
    file = tmp_path / "m.safetensors"
    for padding in range(0, 512, 4):
        save_file(WEIGHTS, file, {"note": "x" * padding})
        if file.read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header has that length")
    found = read_weights(file, "reward")
    assert same({name: found[name] for name in WEIGHTS}, WEIGHTS)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"module": state}},
        lambda state: {"params_ema": state},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: state | {"epoch": 3, "note": "plain values beside the tensors"},
    ],
)
def test_a_state_dict_is_found_in_what_trainers_wrap_around_it(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], archive: bool
) -> None:
    path = tmp_path / "m.pth"
    torch.save(wrap(dict(WEIGHTS)), path, _use_new_zipfile_serialization=archive)
    assert same(read_weights(path, "reward"), WEIGHTS)


def test_weights_can_be_differentiated_through_when_read_in_inference_mode(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "m.pt")
    save_file(WEIGHTS, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        with torch.inference_mode():
            weight = read_weights(tmp_path / name, "reward")["head.weight"]
        x = torch.ones(300, requires_grad=True)
        (x @ weight).sum().backward()
        torch.testing.assert_close(x.grad, WEIGHTS["head.weight"].sum(1))


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.victim, "owned", "utf-8")


def malicious(path: Path, kind: str) -> Path:
    """Write a pickle with a payload to `path`; return the file that it would write."""
    victim = path.with_name("owned")
    state = {"state_dict": dict(WEIGHTS), "extra": Payload(victim)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "archive")
    return victim


@pytest.mark.parametrize("kind", ["archive", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.bin"])
def test_a_pickle_with_code_in_it_is_refused_and_its_code_does_not_run(
    tmp_path: Path, kind: str, name: str
) -> None:
    victim = malicious(tmp_path / name, kind)
    with pytest.raises(RewardError, match="HPS v2.*could run code, and was not opened") as caught:
        read_weights(tmp_path / name, "HPS v2")
    assert str(tmp_path / name) in str(caught.value)
    assert not victim.exists()
    if kind != "pickle":
        with (tmp_path / name).open("rb") as file:
            torch.load(file, weights_only=False)
        assert victim.read_text(encoding="utf-8") == "owned"


def test_the_refusal_does_not_advise_to_open_the_file_unsafely(tmp_path: Path) -> None:
    malicious(tmp_path / "m.pt", "archive")
    with pytest.raises(RewardError) as caught:
        read_weights(tmp_path / "m.pt", "HPS v2")
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("save", [torch.save, lambda m, path: torch.jit.script(m).save(path)])
def test_a_whole_pickled_module_is_refused(
    tmp_path: Path, save: Callable[[nn.Module, str], None]
) -> None:
    save(nn.Linear(2, 2), str(tmp_path / "m.pt"))
    with pytest.raises(RewardError, match="could run code"):
        read_weights(tmp_path / "m.pt", "reward")


def cut(writer: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if writer == "safetensors":
            save_file(WEIGHTS, path)
        else:
            torch.save(WEIGHTS, path, _use_new_zipfile_serialization=writer == "archive")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut("safetensors"), "broken, incomplete"),
        (cut("archive"), "broken, incomplete"),
        (cut("legacy"), "broken, incomplete"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html></html>"), "a web page"),
        (lambda path: path.write_bytes(b"<html>"), "a web page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(64)), "GGUF"),
        (lambda path: path.write_bytes(bytes(4000)), "broken, incomplete"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(4000)), "broken, incomplete"),
        (lambda path: path.write_bytes(b"\x80\x02"), "broken, incomplete"),
        (lambda path: path.write_bytes(b'{"a": 1}'), "broken, incomplete"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "there is no file"),
        (lambda path: torch.save(torch.ones(3), path), "no weights by name"),
        (lambda path: torch.save({"epoch": 3}, path), "no weights by name"),
        (lambda path: torch.save({}, path), "no weights by name"),
    ],
)
def test_what_cannot_be_weights_is_named_with_what_to_do(
    tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "m.pt"
    write(path)
    with pytest.raises(RewardError, match=words) as caught:
        read_weights(path, "PickScore")
    assert str(caught.value).startswith("PickScore: ") and str(path) in str(caught.value)


def library_models() -> Mapping[str, Callable[[], nn.Module]]:
    """Models of the libraries that define the formats, by what they are to be recognised as."""
    import open_clip
    import torchvision
    import transformers as hf
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
    )

    small = {"num_hidden_layers": 1}
    h_14 = hf.CLIPConfig(
        projection_dim=1024,
        text_config={"hidden_size": 1024, "num_attention_heads": 16} | small,
        vision_config={"hidden_size": 1280, "num_attention_heads": 16, "patch_size": 14} | small,
    )
    clip = hf.CLIPConfig(text_config=small, vision_config=small)
    siglip = hf.SiglipConfig(text_config=small, vision_config=small)
    return {
        "a transformers CLIP (ViT-H/14, as PickScore is)": lambda: hf.CLIPModel(h_14),
        "a transformers CLIP": lambda: hf.CLIPModel(clip),
        "the image half of a CLIP (a CLIP vision model)": lambda: hf.CLIPVisionModelWithProjection(
            clip.vision_config
        ),
        "a CLIP text encoder": lambda: hf.CLIPTextModelWithProjection(clip.text_config),
        "a SigLIP model": lambda: hf.SiglipModel(siglip),
        "the image half of a SigLIP": lambda: hf.SiglipVisionModel(siglip.vision_config),
        "a T5 text encoder": lambda: hf.T5EncoderModel(hf.T5Config(num_layers=1)),
        "an open_clip CLIP (ViT-H/14, as HPS v2 is)": lambda: open_clip.create_model(
            "ViT-H-14", device="meta"
        ),
        "an open_clip CLIP": lambda: open_clip.create_model("ViT-B-32", device="meta"),
        "torchvision's AlexNet": lambda: torchvision.models.alexnet(),
        "torchvision's VGG": lambda: torchvision.models.vgg16(),
        "a diffusion UNet": UNet2DConditionModel,
        "a ControlNet": ControlNetModel,
        "a VAE": AutoencoderKL,
        "a Flux model": lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1),
        "a Stable Diffusion 3 model": lambda: SD3Transformer2DModel(num_layers=2),
    }


def test_the_weights_of_the_libraries_are_recognised() -> None:
    with torch.device("meta"):
        found = {
            label: looks_like(build().state_dict()) for label, build in library_models().items()
        }
    assert found == {label: label for label in found}


def test_the_real_shift_tolerant_lpips_is_recognised() -> None:
    found = importlib.util.find_spec("stlpips_pytorch")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    assert looks_like(read_weights(path, "LPIPS")) == "a shift-tolerant LPIPS network"


def test_the_real_lpips_heads_are_recognised() -> None:
    found = importlib.util.find_spec("lpips")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent / "weights" / "v0.1"
    labels = {
        name: looks_like(read_weights(folder / f"{name}.pth", "LPIPS"))
        for name in ("alex", "vgg", "squeeze")
    }
    assert labels == {
        "alex": "LPIPS linear heads for AlexNet",
        "vgg": "LPIPS linear heads for VGG16",
        "squeeze": "LPIPS linear heads for SqueezeNet",
    }


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors without values; "__" in a name stands for a dot."""
    return {
        name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in shapes.items()
    }


UNET = tensors(model__diffusion_model__input_blocks__0__0__weight=(320, 4, 3, 3))


@pytest.mark.parametrize(
    ("state", "label"),
    [
        (tensors(layers__0__weight=(1024, 768), layers__7__bias=(1,)), "a LAION aesthetic v2 head"),
        (tensors(weight=(1, 768), bias=(1,)), "a LAION aesthetic v1 head for ViT-L/14"),
        (
            tensors(weight=(1, 512), bias=(1,)),
            "a LAION aesthetic v1 head for ViT-B/32 or ViT-B/16",
        ),
        (tensors(scoring_head__0__weight=(1024, 1152)), "an aesthetic v2.5 head"),
        (
            tensors(
                blip__visual_encoder__cls_token=(1, 1, 1024), mlp__layers__0__weight=(1024, 768)
            ),
            "an ImageReward model",
        ),
        (
            tensors(
                model__vision_model__post_layernorm__weight=(1280,),
                cross_model__layers__0__0__norm__weight=(1024,),
            ),
            "an MPS model",
        ),
        (tensors(lora_unet_down_blocks_0__lora_up__weight=(8, 4)), "a LoRA"),
        (tensors(transformer__blocks__0__attn__to_q__lora_A__weight=(8, 4)), "a LoRA"),
        (tensors(control_model__input_hint_block__0__weight=(16, 3, 3, 3)), "a ControlNet"),
        (
            UNET | tensors(cond_stage_model__transformer__text_model__final__weight=(1,)),
            "a Stable Diffusion 1.x checkpoint",
        ),
        (
            UNET | tensors(cond_stage_model__model__ln_final__weight=(1024,)),
            "a Stable Diffusion 2.x checkpoint",
        ),
        (
            UNET | tensors(conditioner__embedders__1__model__ln_final__weight=(1280,)),
            "a Stable Diffusion XL checkpoint",
        ),
        (UNET, "a diffusion UNet"),
        (
            tensors(
                double_blocks__0__img_attn__qkv__weight=(1,), single_blocks__0__linear1__weight=(1,)
            ),
            "a Flux model",
        ),
        (tensors(emb_params=(4, 768)), "a textual inversion"),
        (tensors(clip_g=(4, 1280), clip_l=(4, 768)), "a textual inversion"),
        (tensors(model__1__sub__0__RDB1__conv1__0__weight=(32, 64, 3, 3)), "an upscaler"),
        (tensors(model__layers__0__self_attn__q_proj__weight=(8, 8)), "a language model"),
        (
            tensors(a=(1,), b=(1,), c=(1,), d=(1,)),
            "unknown weights (4 tensors, first a, b, c)",
        ),
        ({}, "an empty file"),
    ],
)
def test_what_artists_have_lying_around_is_recognised(
    state: Mapping[str, Tensor], label: str
) -> None:
    assert looks_like(state) == label


def test_a_wrong_checkpoint_is_told_with_what_it_looks_like(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "style.safetensors")
    path = tmp_path / "style.safetensors"
    error = wrong_checkpoint(
        path, "HPS v2", "HPS v2's open_clip weights", read_weights(path, "HPS v2")
    )
    assert isinstance(error, RewardError)
    assert str(error) == (
        "HPS v2: style.safetensors looks like a LoRA, not like HPS v2's open_clip weights. "
        "Choose another file in the model widget of Reward Loader."
    )
