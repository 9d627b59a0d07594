"""JPEG incompressibility: the size of the JPEG file (DDPO; DNO paper, section 5.3)."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .jpeg import QUALITY, UNIT, bits_per_pixel, scale

NAME = "jpeg_incompressibility"


def create(quality: int) -> Reward:
    def score(images: Tensor) -> Tensor:
        return bits_per_pixel(images, quality)

    return PixelReward(NAME, UNIT, scale(quality), score, differentiable=False)


SPEC = Spec(
    NAME,
    "JPEG incompressibility",
    UNIT,
    "A richer picture: the larger its JPEG file, the higher the score. It has no gradient.",
    create,
    inputs=(QUALITY,),
    group="black box",
)
