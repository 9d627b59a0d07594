"""Models in open_clip's formats: a folder with open_clip_config.json, or one file as HPS has it."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from ..files.checkpoint import read_weights, wrong_checkpoint
from .cache import once, stamps
from .folder import OPEN_CLIP_CONFIG, broken, missing_file, read_json
from .precision import dtype_of
from .preprocessing import Preprocessing, hps_preprocessing
from .reading import reading
from .texts import Tokenize
from .tokenizers import BUNDLED_VOCABULARY, clip_tokens, open_clip_tokens
from .tower import TextTower

_WEIGHTS = (  # in the order in which open_clip looks for them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
_EXPECTED = "an open_clip ViT-H-14 with its text encoder"
_IMAGE_HEAD, _TEXT_HEAD = 80, 64  # ViT-H-14's; the shapes in a file do not tell them


def open_clip_weights(folder: Path, reward: str) -> Path:
    """The file with the weights; raises RewardError when there is none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise missing_file(folder, _WEIGHTS[0], reward)


def load_open_clip_folder(
    folder: Path, weights: Path, dtype: torch.dtype | None, reward: str
) -> TextTower:
    """Any architecture that open_clip builds, from its folder. Raises RewardError."""
    import open_clip

    _check_local(folder, read_json(folder / OPEN_CLIP_CONFIG, reward), reward)
    stored = _stored_dtype(read_weights(weights, reward))
    name = f"local-dir:{folder}"
    try:
        # ComfyUI calls nodes in inference mode, whose tensors autograd refuses for ever.
        with torch.inference_mode(False), torch.no_grad():
            model: Any = open_clip.create_model(
                name, pretrained_image=False, pretrained_text=False, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(name)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise broken(weights, reward, error) from error
    tokenize = open_clip_tokens(tokenizer, tokenizer.context_length)
    return _tower(
        folder.name,
        model,
        configured_preprocessing(model.visual.preprocess_cfg),
        tokenize,
        dtype,
        stored,
    )


def load_open_clip_file(
    path: Path, reward: str, precision: str = "auto", longest_side: bool = False
) -> TextTower:
    """A ViT-H-14, or one of another size, from one file of weights, loaded once.

    longest_side: the longer side becomes the model's size and the rest is black, as HPS wants it,
    instead of a crop. Raises RewardError.
    """
    dtype = dtype_of(precision, reward)
    path = path.expanduser().resolve()
    if not path.is_file():
        raise RewardError(
            f"{reward}: there is no file {path}. "
            "Choose another model in Reward Loader, or put the file there."
        )
    with reading(path, reward):
        key = ("open_clip file", *stamps([path]), dtype, longest_side)
        return once(key, lambda: _load_file(path, reward, dtype, longest_side))


def _load_file(path: Path, reward: str, dtype: torch.dtype | None, longest_side: bool) -> TextTower:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    state = read_weights(path, reward)
    try:
        embedding, vision, text = _sizes(state)
        with torch.inference_mode(False), torch.no_grad():
            with torch.device("meta"):  # a random start would take longer than the reading
                model = CLIP(embedding, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
            lost = model.load_state_dict(state, strict=False, assign=True)
            limit = text["context_length"]
            mask = torch.full((limit, limit), -math.inf, dtype=_stored_dtype(state)).triu(1)
            model.register_buffer("attn_mask", mask, persistent=False)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise wrong_checkpoint(path, reward, _EXPECTED, state) from error
    if lost.missing_keys or lost.unexpected_keys:
        raise wrong_checkpoint(path, reward, _EXPECTED, state)
    size = vision["image_size"]
    return _tower(
        path.name,
        model,
        hps_preprocessing(size) if longest_side else _torchvision(size),
        clip_tokens(limit, padded=True),
        dtype,
        _stored_dtype(state),
    )


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Width of the embedding, vision and text settings, all from the shapes of the weights."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions = state["visual.positional_embedding"].shape[0] - 1
    context, text_width = state["positional_embedding"].shape
    vocabulary = state["token_embedding.weight"].shape[0]
    if width % _IMAGE_HEAD or text_width % _TEXT_HEAD or vocabulary != BUNDLED_VOCABULARY:
        raise ValueError("another family")
    vision = {
        "layers": _layers(state, "visual.transformer"),
        "width": width,
        "head_width": _IMAGE_HEAD,
        "mlp_ratio": _mlp_ratio(state, "visual.transformer"),
        "patch_size": patch,
        "image_size": math.isqrt(positions) * patch,
    }
    text = {
        "layers": _layers(state, "transformer"),
        "width": text_width,
        "heads": text_width // _TEXT_HEAD,
        "mlp_ratio": _mlp_ratio(state, "transformer"),
        "context_length": context,
        "vocab_size": vocabulary,
    }
    return state["text_projection"].shape[1], vision, text


def _layers(state: Mapping[str, Tensor], part: str) -> int:
    pattern = re.compile(rf"{re.escape(part)}\.resblocks\.(\d+)\.")
    return max(int(found[1]) for name in state if (found := pattern.match(name))) + 1


def _mlp_ratio(state: Mapping[str, Tensor], part: str) -> float:
    inner, width = state[f"{part}.resblocks.0.mlp.c_fc.weight"].shape
    return inner / width


def _tower(
    label: str,
    model: Any,
    preprocessing: Preprocessing,
    tokenize: Tokenize,
    dtype: torch.dtype | None,
    stored: torch.dtype,
) -> TextTower:
    logit_scale = float(model.logit_scale.detach().float().exp())  # half precision rounds it
    with torch.inference_mode(False):
        model.to(dtype or stored).requires_grad_(False).eval()
    return TextTower(
        label=label,
        model=model,
        width=_width(model),
        preprocessing=preprocessing,
        embed_images=model.encode_image,
        dtype=dtype,
        tokenize=tokenize,
        embed_texts=model.encode_text,
        logit_scale=logit_scale,
    )


def _width(model: Any) -> int:
    """D, by embedding an empty text: each architecture keeps it elsewhere."""
    weight = next(model.parameters())
    limit = getattr(model, "context_length", None) or model.text.context_length
    with torch.inference_mode(False), torch.no_grad():
        empty = torch.zeros(1, limit, dtype=torch.long, device=weight.device)
        return int(model.encode_text(empty).shape[-1])


def _stored_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most weights in a file."""
    largest = max((each for each in state.values() if each.is_floating_point()), key=Tensor.numel)
    return largest.dtype


def _torchvision(size: int) -> Preprocessing:
    return Preprocessing((size, size), (size, size), rounded=True)


def configured_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """open_clip's preprocess_cfg in our terms."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = config["resize_mode"] == "squash"
    return Preprocessing(
        resize=(height, width),
        crop=None if squash else (height, width),
        mode="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fit=config["resize_mode"],
        rounded=True,
        fill=config["fill_color"] / 255,
    )


def _check_local(folder: Path, config: dict[str, Any], reward: str) -> None:
    """Raise RewardError for a model whose parts open_clip would fetch from elsewhere."""
    parts = config.get("model_cfg", {})
    text = parts.get("text_cfg", {}).get("hf_model_name")
    vision = str(parts.get("vision_cfg", {}).get("timm_model_name", ""))
    elsewhere = text if text and not Path(text).is_dir() else vision if ":" in vision else None
    if elsewhere:
        raise RewardError(
            f"{reward}: {folder} is built on another model, {elsewhere}, which would have to be "
            "downloaded. Choose a model that is whole in Reward Loader."
        )
