"""ImageReward's folder: ImageReward.pt, med_config.json and bert-base-uncased's tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base import RewardError
from ...files.checkpoint import read_weights, wrong_checkpoint
from ..cache import once, stamps
from ..precision import dtype_of, through
from ..preprocessing import Preprocessing, preprocess
from ..reading import reading
from ..texts import TextMemory, warn_of_cut
from .network import VISION, Blip, build
from .tokens import FILES, load_tokenizer, tokenise

WEIGHTS = ("ImageReward.pt", "ImageReward.safetensors")
CONFIG = "med_config.json"


@dataclass(eq=False)
class ImageRewardModel:
    """The network behind its preprocessing and tokenizer.

    In a small random network whose scores spread by 3, float16 stayed within 0.01 of float32 and
    bfloat16 within 0.2, with the same gradient to a cosine of 0.9999 and 0.998.
    """

    label: str
    network: Blip = field(repr=False)
    tokenizer: Any = field(repr=False)
    texts: TextMemory = field(default_factory=TextMemory, repr=False)

    def __call__(self, images: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """Raw rewards [B], float32 at least, of images [B, 3, H, W] in [0, 1]; differentiable."""
        vision = self.network.vision
        size = vision.config.image_size
        weight = vision.embeddings.class_embedding
        ids = self.texts(prompts, self._ids).to(weight.device)
        fit = Preprocessing((size, size), (size, size), rounded=True)
        pixels = preprocess(images.to(weight.device), fit)
        states = through(lambda x: self.network(x, ids), pixels, weight.dtype)
        head = self.network.head
        raw: Tensor = head(states.to(next(head.parameters()).dtype))
        return raw[:, 0]

    def _ids(self, prompt: str) -> Tensor:
        tokens = tokenise(self.tokenizer, prompt)
        warn_of_cut(tokens, self.label)
        return torch.tensor(tokens.ids)


def load_image_reward(folder: Path, reward: str, precision: str = "auto") -> ImageRewardModel:
    """The model in `folder`; loaded again only when its files changed. Raises RewardError.

    precision "auto" is float32, in which the weights are published.
    """
    dtype = dtype_of(precision, reward) or torch.float32
    folder = folder.expanduser().resolve()
    weights = _file(folder, WEIGHTS, reward)
    config = _file(folder, (CONFIG,), reward)
    files = [weights, config, *(folder / name for name in FILES if (folder / name).is_file())]
    with reading(folder, reward):
        key = (ImageRewardModel, *stamps(files), dtype)
        return once(key, lambda: _load(weights, config, dtype, reward))


def _file(folder: Path, names: tuple[str, ...], reward: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RewardError(
        f"{reward}: {names[0]} is missing in {folder}. "
        "Put the files of THUDM/ImageReward there, or choose the download in Reward Loader."
    )


def _load(weights: Path, config: Path, dtype: torch.dtype, reward: str) -> ImageRewardModel:
    sizes = _read_config(config, reward)
    state = read_weights(weights, reward)
    if not any(name.startswith(VISION) for name in state):
        raise wrong_checkpoint(weights, reward, "ImageReward's weights", state)
    network = build(state, sizes, dtype, weights, reward)
    tokenizer = load_tokenizer(weights.parent, network.text.config.vocab_size, reward)
    return ImageRewardModel(weights.parent.name, network, tokenizer)


def _read_config(path: Path, reward: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a list of settings")
    except ValueError as error:
        raise RewardError(
            f"{reward}: {path} cannot be read ({error}). "
            "Put the med_config.json of THUDM/ImageReward there."
        ) from error
    return config
