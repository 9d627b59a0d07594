"""Contrast: how much the pixels differ in lightness from each other (DNO's code)."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .masks import average

NAME = "contrast"
UNIT = "variance of the channel sum, 0 (flat) to 9 (half black, half white)"
SCALE = 1.06


def contrast(images: Tensor, region: Tensor | None = None) -> Tensor:
    """score = variance over the pixels of the sum over the channels of 2 x - 1; range [0, 9]."""
    sums = images.sum(dim=1, keepdim=True) * 2 - 3
    return average((sums - average(sums, region).view(-1, 1, 1, 1)).square(), region)


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, contrast, masked=True)


SPEC = Spec(NAME, "Contrast", UNIT, "Light parts lighter, dark parts darker.", create)
