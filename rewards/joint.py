"""Rewards whose network reads picture and prompt together, and gives the score itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Context, check_images
from .towers.texts import prompts_for


@dataclass(frozen=True)
class JointReward:
    """score = (model(pictures, prompts) - mean) / std.

    model: images [B, 3, H, W] in [0, 1] and B prompts -> [B]. network: what it is made of.
    """

    model: Callable[[Tensor, tuple[str, ...]], Tensor] = field(repr=False)
    network: torch.nn.Module = field(repr=False)
    name: str
    unit: str
    scale: float
    mean: float = 0.0
    std: float = 1.0
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.network,)

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a prompt for every image."""
        images = check_images(images, self.name)
        prompts = prompts_for(self.name, context, len(images))
        return ((self.model(images, prompts) - self.mean) / self.std).to(images)
