"""A model's folder on disk: what kind it is, which files it holds, what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..base import RewardError

OPEN_CLIP_CONFIG = "open_clip_config.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
_WITH_TEXT = ("clip", "siglip", "siglip2")
_PICTURES_ONLY = ("clip_vision_model", "siglip_vision_model")


class ModelFolder(NamedTuple):
    """A transformers folder that was looked at. kind: its model_type."""

    path: Path
    kind: str
    config: dict[str, Any]
    weights: Path
    has_tokenizer: bool

    @property
    def has_text(self) -> bool:
        return self.kind in _WITH_TEXT

    @property
    def pickles(self) -> list[Path]:
        """The weights files in PyTorch's own format, if these are what is loaded."""
        if self.weights.name == _PICKLES[0]:
            return [self.weights]
        return (
            sorted(self.path.glob("pytorch_model-*.bin")) if self.weights.name in _PICKLES else []
        )

    @property
    def files(self) -> list[Path]:
        """The files that what is loaded depends on."""
        names = ("config.json", "preprocessor_config.json", "processor_config.json")
        tokens = (name for names in _TOKENIZERS for name in (*names, "tokenizer_config.json"))
        small = {self.path / name for name in (*names, *tokens)}
        shards = self.weights.name.endswith(".index.json")
        large = self.path.glob(f"{self.weights.name.partition('.')[0]}-*") if shards else ()
        return [self.weights, *sorted(large), *sorted(file for file in small if file.is_file())]


def existing(path: Path, reward: str) -> Path:
    """The folder, resolved; raises RewardError when there is none."""
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise RewardError(
            f"{reward}: there is no model folder {path}. "
            "Choose another model in Reward Loader, or put the folder there."
        )
    return path


def look_into(path: Path, reward: str, text: bool) -> ModelFolder:
    """The transformers folder; raises RewardError when it is no image tower, or has no text.

    text: whether texts have to be embedded too.
    """
    config = _read_config(path, reward)
    kind = str(config.get("model_type", ""))
    _check_kind(path, config, reward, text)
    weights = [path / name for name in (*_SAFETENSORS, *_PICKLES) if (path / name).is_file()]
    if not weights:
        raise missing_file(path, _SAFETENSORS[0], reward)
    tokenizer = any(all((path / name).is_file() for name in names) for names in _TOKENIZERS)
    return ModelFolder(path, kind, config, weights[0], tokenizer)


def _read_config(path: Path, reward: str) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        if (path / "model_index.json").is_file():
            raise _unfit(path, "a whole diffusers pipeline", reward)
        raise missing_file(path, "config.json", reward)
    return read_json(file, reward)


def read_json(file: Path, reward: str) -> dict[str, Any]:
    """The settings in a file; raises RewardError when they cannot be read."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise broken(file, reward, error) from error
    return config


def _check_kind(path: Path, config: dict[str, Any], reward: str, text: bool) -> None:
    kind = config.get("model_type")
    if kind in _PICTURES_ONLY and text:
        raise RewardError(
            f"{reward}: {path} holds the picture half of a model alone, and the prompt needs the "
            "other. Choose the whole CLIP or SigLIP model in Reward Loader."
        )
    if kind == "siglip2" and "num_patches" in config.get("vision_config", {}):
        raise _unfit(path, "a SigLIP 2 for pictures of any shape (NaFlex)", reward)
    if config.get("vision_config", config).get("vision_use_head") is False:
        raise RewardError(
            f"{reward}: {path} holds a SigLIP without the layer that makes one embedding of a "
            "picture. Choose the whole SigLIP in Reward Loader."
        )
    if kind in (*_WITH_TEXT, *_PICTURES_ONLY):
        return
    if "_class_name" in config:
        raise _unfit(path, f"a diffusers {config['_class_name']}", reward)
    raise _unfit(path, f'a model of type "{kind}"', reward)


def _unfit(path: Path, found: str, reward: str) -> RewardError:
    return RewardError(
        f"{reward}: {path} looks like {found}, not like CLIP or SigLIP. "
        "Choose the folder of a CLIP or a SigLIP with a fixed picture size in Reward Loader."
    )


def missing_file(path: Path, file: str, reward: str) -> RewardError:
    return RewardError(
        f"{reward}: {file} is missing in {path}. "
        "Download the whole model, or choose another one in Reward Loader."
    )


def broken(file: Path, reward: str, error: Exception) -> RewardError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RewardError(
        f"{reward}: {file} cannot be read ({reason}). "
        "Download it again, or choose another model in Reward Loader."
    )
