"""Preference models: a CLIP tuned so that the pictures people preferred agree with the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .affine_head import TOWERS
from .base import Context, RewardError, check_images
from .towers.protocols import ImageTextTower
from .towers.texts import cosine_scores, prompts_for

WIDTH = 1024
"""PickScore and HPS are tuned CLIP ViT-H/14s."""


@dataclass(frozen=True, eq=False)
class PreferenceReward:
    """score = factor * cos(picture, prompt)."""

    tower: ImageTextTower = field(repr=False)
    factor: float
    name: str
    unit: str
    scale: float
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.tower.modules

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a prompt for every image."""
        images = check_images(images, self.name)
        prompts = prompts_for(self.name, context, len(images))
        return self.factor * cosine_scores(self.tower, images, prompts)


def refuse_other_tower(tower: ImageTextTower, reward: str) -> None:
    """Raise RewardError for a tower of another well-known size: it is an untuned CLIP or SigLIP."""
    if tower.width != WIDTH and tower.width in TOWERS:
        raise RewardError(
            f"{reward}: {tower.label} looks like {TOWERS[tower.width]}, not like a tuned "
            f"{TOWERS[WIDTH]}. Choose another model in Reward Loader."
        )
