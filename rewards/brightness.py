"""Brightness: the mean of all pixels (DNO paper, "bright images")."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .masks import average

NAME = "brightness"
UNIT = "mean pixel, -1 (black) to 1 (white)"
SCALE = 0.335


def brightness(images: Tensor, region: Tensor | None = None) -> Tensor:
    """score = mean over channels and pixels of 2 x - 1, with x in [0, 1]; range [-1, 1]."""
    return average(images, region) * 2 - 1


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, brightness, masked=True)


SPEC = Spec(NAME, "Brightness", UNIT, "A lighter picture.", create)
