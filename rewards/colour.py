"""Colour: how near all pixels are to one colour, as the eye sees it (CIE 1976 L*a*b*)."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from .base import Input, PixelReward, Reward, Spec
from .lab import Colour, differences, parse_colour
from .masks import average

NAME = "colour"
UNIT = "closeness, 0 (as far as a colour can be) to 1 (every pixel is this colour)"
SCALE = 0.0955


def closeness(
    images: Tensor,
    region: Tensor | None,
    target: Colour,
    farthest: float,
) -> Tensor:
    """score = 1 - mean dE / farthest, with x in [0, 1]; range [0, 1]."""
    return 1 - average(differences(images, [target]), region) / farthest


def farthest_difference(target: Colour) -> float:
    """The largest dE any sRGB colour has to the target: it lies at a corner of the cube."""
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).view(8, 3, 1, 1)
    return float(differences(corners, [target]).max())


def create(colour: str) -> Reward:
    target = parse_colour(colour, NAME)
    score = partial(closeness, target=target, farthest=farthest_difference(target))
    return PixelReward(f"{NAME} {colour.strip()}", UNIT, SCALE, score, masked=True)


SPEC = Spec(
    NAME,
    "Colour",
    UNIT,
    "The whole picture nearer to one colour.",
    create,
    inputs=(
        Input(
            "colour",
            "colour",
            "#ff0000",
            "The colour the whole picture moves towards, as #rrggbb. Strong colours pull harder "
            "than greys; black and white act like darkness and brightness.",
        ),
    ),
)
