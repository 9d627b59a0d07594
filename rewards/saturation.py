"""Saturation: how colourful the pixels are, as the eye sees it (chroma of CIE 1976 L*a*b*)."""

from __future__ import annotations

from torch import Tensor

from .base import PixelReward, Reward, Spec
from .lab import lab, length
from .masks import average

NAME = "saturation"
UNIT = "mean chroma C*, 0 (grey) to about 133 (pure blue)"
SCALE = 17.9


def saturation(images: Tensor, region: Tensor | None = None) -> Tensor:
    """score = mean of sqrt(a*^2 + b*^2), rounded off below 1 (see `lab.length`).

    Pure red gives 103.6, green 118.8, blue 132.8, yellow 95.9; every grey 0.
    """
    return average(length(lab(images)[:, 1:], dim=1).unsqueeze(1), region)


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, saturation, masked=True)


SPEC = Spec(NAME, "Saturation", UNIT, "More colourful, less grey.", create)
