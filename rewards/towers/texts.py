"""Prompts: one for every image, cut where a model stops reading, compared with pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Context, RewardError
from .protocols import ImageTextTower

log = logging.getLogger("dno")

TEXTS_KEPT = 256


class Tokens(NamedTuple):
    """ids: as the model takes them, padding included. left_out: what was cut off; limit: at."""

    ids: list[int]
    limit: int
    left_out: str = ""


Tokenize = Callable[[str], Tokens]


def prompts_for(reward_name: str, context: Context | None, count: int) -> tuple[str, ...]:
    """One prompt for each of `count` images. Raises RewardError without one for every image."""
    prompts = context.prompts if context else ()
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise RewardError(
            f"{reward_name} has no prompt. Connect the text that the picture should show "
            "to the prompt socket of Reward Loader."
        )
    if len(prompts) not in (1, count):
        raise RewardError(
            f"{reward_name} has {len(prompts)} prompts for {count} images. "
            "Give one prompt for all images, or one for each."
        )
    return prompts if len(prompts) == count else prompts * count


def cosine_scores(tower: ImageTextTower, images: Tensor, texts: tuple[str, ...]) -> Tensor:
    """cos(image, text) in -1..1 of images [B, 3, H, W] and their B texts: [B], differentiable."""
    image = tower.image_features(images)
    text = tower.text_features(texts)
    return (image * text.to(image)).sum(dim=-1).to(images)


def warn_of_cut(tokens: Tokens, label: str) -> None:
    """Say aloud what of a text was not read."""
    if tokens.left_out:
        log.warning(
            'The prompt is longer than the %d tokens that %s reads. Left out: "%s".',
            tokens.limit,
            label,
            tokens.left_out,
        )


class TextMemory:
    """Text features on the CPU, each computed once; the least recently used are forgotten."""

    def __init__(self, kept: int = TEXTS_KEPT) -> None:
        self._features: dict[str, Tensor] = {}
        self._kept = kept

    def __call__(self, texts: tuple[str, ...], compute: Callable[[str], Tensor]) -> Tensor:
        """Features [N, D] of N texts; `compute` gives the [D] of one that is not known."""
        found: dict[str, Tensor] = {}
        for text in dict.fromkeys(texts):
            known = self._features.pop(text, None)
            found[text] = self._features[text] = compute(text) if known is None else known
        while len(self._features) > self._kept:
            del self._features[next(iter(self._features))]
        return torch.stack([found[text] for text in texts])
