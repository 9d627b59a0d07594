"""JPEG compressibility: minus the size of the JPEG file (DNO paper, section 5.3; DDPO)."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .jpeg import QUALITY, UNIT, bits_per_pixel, scale

NAME = "jpeg_compressibility"


def create(quality: int) -> Reward:
    def score(images: Tensor) -> Tensor:
        return -bits_per_pixel(images, quality)

    return PixelReward(NAME, f"minus {UNIT}", scale(quality), score, differentiable=False)


SPEC = Spec(
    NAME,
    "JPEG compressibility",
    f"minus {UNIT}",
    "A simpler picture: the smaller its JPEG file, the higher the score. It has no gradient.",
    create,
    inputs=(QUALITY,),
    group="black box",
)
