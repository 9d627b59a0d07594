"""Darkness: minus the mean of all pixels (DNO paper, "dark images")."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .masks import average

NAME = "darkness"
UNIT = "minus mean pixel, -1 (white) to 1 (black)"
SCALE = 0.335


def darkness(images: Tensor, region: Tensor | None = None) -> Tensor:
    """score = - mean over channels and pixels of 2 x - 1, with x in [0, 1]; range [-1, 1]."""
    return 1 - average(images, region) * 2


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, darkness, masked=True)


SPEC = Spec(NAME, "Darkness", UNIT, "A darker picture.", create)
