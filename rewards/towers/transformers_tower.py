"""CLIP and SigLIP in transformers' folder format."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from ..files.checkpoint import read_weights
from .folder import ModelFolder, broken, missing_file, read_json
from .precision import HALF
from .processor_config import read_preprocessing
from .texts import Tokenize
from .tokenizers import BUNDLED_VOCABULARY, clip_tokens, siglip_tokens, transformers_tokens
from .tower import TextTower, Tower

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError)


def load_image_text(folder: ModelFolder, dtype: torch.dtype | None, reward: str) -> TextTower:
    """The whole CLIP or SigLIP in `folder`; dtype None keeps the file's. Raises RewardError."""
    from transformers import CLIPModel, SiglipModel

    clip = folder.kind == "clip"
    if clip and not folder.has_tokenizer:
        _check_bundled(folder, reward)
    model = _load(folder, CLIPModel if clip else SiglipModel, None, dtype, reward)
    config = model.config
    tokenize = _tokenizer(folder, config.text_config, reward)
    if clip:
        _check_end_of_text(model.text_model, tokenize)
    return TextTower(
        label=folder.path.name,
        model=model,
        width=config.projection_dim if clip else config.vision_config.hidden_size,
        preprocessing=read_preprocessing(folder.path, config.vision_config.image_size, clip),
        embed_images=_pooled(partial(_by_name, model.get_image_features, "pixel_values")),
        dtype=dtype,
        tokenize=tokenize,
        embed_texts=_pooled(partial(_by_name, model.get_text_features, "input_ids")),
        logit_scale=math.exp(_logit_scale(model, folder, reward)),
    )


def load_image(folder: ModelFolder, dtype: torch.dtype | None, reward: str) -> Tower:
    """The picture half of the CLIP or SigLIP in `folder`. Raises RewardError."""
    from transformers import AutoConfig, CLIPVisionModelWithProjection, SiglipVisionModel

    try:
        config = AutoConfig.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except _UNREADABLE as error:
        raise broken(folder.path / "config.json", reward, error) from error
    vision = config
    if folder.has_text:
        vision = config.vision_config
        if folder.kind == "clip":
            # The whole model's, and not what its picture half is told, shapes the projection.
            vision.projection_dim = config.projection_dim
    clip = folder.kind.startswith("clip")
    kind = CLIPVisionModelWithProjection if clip else SiglipVisionModel
    model = _load(folder, kind, vision, dtype, reward)
    return Tower(
        label=folder.path.name,
        model=model,
        width=vision.projection_dim if clip else vision.hidden_size,
        preprocessing=read_preprocessing(folder.path, vision.image_size, clip),
        embed_images=_pooled(partial(_by_name, model, "pixel_values")),
        dtype=dtype,
    )


def _load(
    folder: ModelFolder, kind: Any, config: Any, dtype: torch.dtype | None, reward: str
) -> Any:
    import transformers

    for file in folder.pickles:
        read_weights(file, reward)  # refuses, in plain words, what could run code
    major = int(transformers.__version__.split(".")[0])
    options: dict[str, Any] = {"dtype" if major >= 5 else "torch_dtype": dtype or "auto"}
    if config is not None:
        options["config"] = config
    try:
        # ComfyUI calls nodes in inference mode, whose tensors autograd refuses for ever.
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            model, info = kind.from_pretrained(
                folder.path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors="safetensors" in folder.weights.name,
                weights_only=True,
                output_loading_info=True,
                **options,
            )
    except _unreadable() as error:
        raise broken(folder.weights, reward, error) from error
    lost = [*info["missing_keys"], *(str(item) for item in info["mismatched_keys"])]
    if lost:
        raise RewardError(
            f"{reward}: {folder.weights} does not fill the model; {lost[0]} is missing or "
            "misshaped. Download it again, or choose another model in Reward Loader."
        )
    return model.requires_grad_(False).eval()


def _logit_scale(model: Any, folder: ModelFolder, reward: str) -> float:
    """As the file has it: rounded to bfloat16, its exponential may be off by 1.6 %."""
    if model.logit_scale.dtype not in HALF:
        return float(model.logit_scale)
    file = folder.weights
    if file.suffix == ".json":
        file = folder.path / read_json(file, reward)["weight_map"]["logit_scale"]
    return float(read_weights(file, reward)["logit_scale"])


def _unreadable() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (*_UNREADABLE, SafetensorError)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, no list of the tensors that the picture half leaves in the file."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(folder: ModelFolder, config: Any, reward: str) -> Tokenize:
    from transformers import AutoTokenizer

    limit, siglip = config.max_position_embeddings, folder.kind != "clip"
    pieces = folder.path / "spiece.model"
    if not folder.has_tokenizer:
        if siglip:
            raise missing_file(folder.path, "spiece.model (or tokenizer.json)", reward)
        return clip_tokens(limit, padded=False)
    try:
        if siglip and pieces.is_file():
            return siglip_tokens(pieces, limit)
        tokenizer = AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise RewardError(
            f"{reward}: the text of {folder.path} needs a package that is not installed "
            f"({error.name or error}). Install it, or choose another model in Reward Loader."
        ) from error
    except _UNREADABLE as error:
        raise broken(folder.path, reward, error) from error
    return transformers_tokens(tokenizer, limit, siglip)


def _check_bundled(folder: ModelFolder, reward: str) -> None:
    """Raise RewardError unless the model reads CLIP's own vocabulary, which needs no files."""
    size = folder.config.get("text_config", {}).get("vocab_size", BUNDLED_VOCABULARY)
    if size != BUNDLED_VOCABULARY:
        raise missing_file(folder.path, "tokenizer.json (or vocab.json and merges.txt)", reward)


def _check_end_of_text(text_model: Any, tokenize: Tokenize) -> None:
    """See to it that a text is read at its end token.

    The position is where config.eos_token_id stands, or, where that is 2 (older files), where the
    highest id does. An end token that never comes would read every text at its first token.
    """
    end = tokenize("a").ids[-1]
    if text_model.eos_token_id != 2:
        text_model.eos_token_id = end


def _by_name(function: Callable[..., Any], name: str, value: Tensor) -> Any:
    return function(**{name: value})


def _pooled(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The embedding: a tensor in transformers 4, an attribute of an object in transformers 5."""

    def embed(value: Tensor) -> Tensor:
        out = function(value)
        embeds = getattr(out, "image_embeds", None)
        features: Tensor = getattr(out, "pooler_output", out) if embeds is None else embeds
        return features

    return embed
