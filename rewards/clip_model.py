"""A frozen CLIP in transformers' CLIPModel folder format, loaded once and kept while used."""

from __future__ import annotations

import json
import logging
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .base import RewardError
from .preprocessing import Preprocessing, preprocess, read_preprocessing

log = logging.getLogger("dno")

_TEXTS_KEPT = 256
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(eq=False)
class Clip:
    """model: in the dtype of its file; on a CPU half weights become float32 at the first use.

    texts: text features on the CPU, by text; each is computed once.
    """

    folder: Path
    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    token_limit: int
    texts: dict[str, Tensor] = field(default_factory=dict)


_alive: WeakValueDictionary[tuple[object, ...], Clip] = WeakValueDictionary()
_recent: deque[Clip] = deque(maxlen=2)  # a changed widget must not load the model again


def load_clip(folder: Path, reward: str) -> Clip:
    """The CLIP in `folder`; loaded again only when its files changed. Raises RewardError."""
    folder = folder.expanduser().resolve()
    weights = _check_files(folder, reward)
    stamps = (folder / "config.json", weights)
    key = (str(folder), *(file.stat().st_mtime_ns for file in stamps), weights.stat().st_size)
    clip = _alive.get(key)
    if clip is None:
        clip = _alive[key] = _load(folder, weights, reward)
    if clip not in _recent:
        _recent.append(clip)
    return clip


def _check_files(folder: Path, reward: str) -> Path:
    """Return the weights file; raise RewardError when something is missing."""
    if not folder.is_dir():
        raise RewardError(
            f"{reward}: there is no model folder {folder}. "
            "Choose another model in Reward Loader, or put the folder there."
        )
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    tokenizer = (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )
    has_config = (folder / "config.json").is_file()
    for there, file in (
        (has_config, "config.json"),
        (weights, "model.safetensors"),
        (tokenizer, "tokenizer.json (or vocab.json and merges.txt)"),
    ):
        if not there:
            raise RewardError(
                f"{reward}: {file} is missing in {folder}. "
                "Download the whole model in transformers format, or choose another model."
            )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise _broken(folder / "config.json", reward, error) from error
    if kind != "clip":
        raise RewardError(
            f'{reward}: {folder} holds a model of type "{kind}", not "clip". '
            "Choose a CLIP model in Reward Loader."
        )
    return weights[0]


def _broken(file: Path, reward: str, error: Exception) -> RewardError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RewardError(
        f"{reward}: {file} cannot be read ({reason}). "
        "Download it again, or choose another model in Reward Loader."
    )


def _load(folder: Path, weights: Path, reward: str) -> Clip:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, CLIPModel

    major = int(transformers.__version__.split(".")[0])
    dtype: dict[str, Any] = {"dtype" if major >= 5 else "torch_dtype": "auto"}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    try:
        transformers.utils.logging.disable_progress_bar()
        # ComfyUI calls nodes in inference mode, whose tensors autograd refuses for ever.
        with torch.inference_mode(False), torch.no_grad():
            loaded: Any = CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **dtype,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _broken(weights, reward, error) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    model, info = loaded
    lost = [*info["missing_keys"], *(str(item) for item in info["mismatched_keys"])]
    if lost:
        raise RewardError(
            f"{reward}: {weights} does not fill the model; {lost[0]} is missing or misshaped. "
            "Download it again, or choose another model in Reward Loader."
        )
    model.requires_grad_(False).eval()
    config = model.config
    return Clip(
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        preprocessing=read_preprocessing(folder, config.vision_config.image_size),
        token_limit=config.text_config.max_position_embeddings,
    )


def _ready(clip: Clip) -> Tensor:
    """A weight that tells the model's device and dtype. Half precision is no good on a CPU."""
    weight: Tensor = next(clip.model.parameters())
    if weight.device.type == "cpu" and weight.dtype in (torch.float16, torch.bfloat16):
        with torch.inference_mode(False):
            clip.model.float()
        weight = next(clip.model.parameters())
    return weight


def image_features(clip: Clip, images: Tensor) -> Tensor:
    """Unit-length image embeddings [B, D] of images [B, 3, H, W] in [0, 1]; differentiable."""
    weight = _ready(clip)
    pixels = preprocess(images.to(weight.device), clip.preprocessing).to(weight.dtype)
    return _unit(clip.model.get_image_features(pixel_values=pixels))


def text_features(clip: Clip, texts: tuple[str, ...]) -> Tensor:
    """Unit-length text embeddings [N, D] on the CPU. A text over the token limit is cut, aloud."""
    for text in dict.fromkeys(texts):
        if text not in clip.texts:
            while len(clip.texts) >= _TEXTS_KEPT:
                clip.texts.pop(next(iter(clip.texts)))
            clip.texts[text] = _text_feature(clip, text)
    return torch.stack([clip.texts[text] for text in texts])


def _text_feature(clip: Clip, text: str) -> Tensor:
    ids = clip.tokenizer(text, verbose=False)["input_ids"]
    if len(ids) > clip.token_limit:
        cut = clip.tokenizer.decode(ids[clip.token_limit - 1 : -1]).strip()
        log.warning(
            'The prompt is longer than the %d tokens that %s reads. Left out: "%s".',
            clip.token_limit,
            clip.folder.name,
            cut,
        )
        ids = [*ids[: clip.token_limit - 1], ids[-1]]
    with torch.inference_mode(False), torch.no_grad():
        tokens = torch.tensor([ids], device=_ready(clip).device)
        out = clip.model.get_text_features(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return _unit(out)[0].cpu()


def _unit(out: Any) -> Tensor:
    """L2-normalise what get_*_features returns: a tensor, or in transformers >= 5 an object."""
    features: Tensor = getattr(out, "pooler_output", out)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.norm(dim=-1, keepdim=True)
