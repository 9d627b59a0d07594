"""Contrast: how much the pixels differ in lightness from each other (DNO's code)."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec

NAME = "contrast"
UNIT = "variance of the channel sum, 0 (flat) to 9 (half black, half white)"
SCALE = 1.06


def contrast(images: Tensor) -> Tensor:
    """score = variance over the pixels of the sum over the channels of 2 x - 1; range [0, 9]."""
    return (images.sum(dim=1) * 2 - 3).var(dim=(1, 2), correction=0)


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, contrast)


SPEC = Spec(NAME, "Contrast", UNIT, "Light parts lighter, dark parts darker.", create)
