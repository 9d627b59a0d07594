"""Colour: how near all pixels are to one colour, as the eye sees it (CIE 1976 L*a*b*)."""

from __future__ import annotations

import itertools
import re
from functools import partial

import torch
from torch import Tensor

from .base import Input, PixelReward, Reward, RewardError, Spec

NAME = "colour"
UNIT = "closeness, 0 (as far as a colour can be) to 1 (every pixel is this colour)"
SCALE = 0.0955

# sRGB primaries, D65 white (IEC 61966-2-1), each row divided by the white point
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def parse_colour(text: str) -> tuple[float, float, float]:
    """Red, green, blue in [0, 1] of "#rrggbb" or "#rgb"; raises RewardError for anything else.

    Colour pickers may add an opacity ("#rrggbbaa"): it says nothing about a colour, so it is left.
    """
    digits = text.strip().removeprefix("#")
    if re.fullmatch(r"[0-9a-fA-F]{3}", digits):
        digits = "".join(digit * 2 for digit in digits)
    if not re.fullmatch(r"[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", digits):
        raise RewardError(
            f'{NAME}: "{text}" is not a colour. Write it as #rrggbb, for example #ff0000 for red.'
        )
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def lab(rgb: Tensor) -> Tensor:
    """sRGB [..., 3, H, W] in [0, 1] -> L* in 0..100, a* and b* in about -128..128."""
    linear = torch.where(
        rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    )
    matrix = torch.tensor(_XYZ, dtype=rgb.dtype, device=rgb.device)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix, linear)
    delta = 6 / 29
    f = torch.where(
        xyz > delta**3, xyz.clamp(min=delta**3) ** (1 / 3), xyz / (3 * delta**2) + 4 / 29
    )
    x, y, z = f.unbind(-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-3)


def difference(images: Tensor, target: tuple[float, float, float]) -> Tensor:
    """Colour difference dE of every pixel to the target: [B, 3, H, W] -> [B, H, W].

    dE = |Lab(x) - Lab(target)|, rounded off below one just noticeable difference
    (sqrt(dE^2 + 1) - 1), so that it has a gradient everywhere.
    """
    colour = torch.tensor(target, dtype=images.dtype, device=images.device).view(3, 1, 1)
    return ((lab(images) - lab(colour)).square().sum(dim=-3) + 1).sqrt() - 1


def closeness(images: Tensor, target: tuple[float, float, float], farthest: float) -> Tensor:
    """score = 1 - mean dE / farthest, with x in [0, 1]; range [0, 1]."""
    return 1 - difference(images, target).mean(dim=(1, 2)) / farthest


def farthest_difference(target: tuple[float, float, float]) -> float:
    """The largest dE any sRGB colour has to the target: it lies at a corner of the cube."""
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).view(8, 3, 1, 1)
    return float(difference(corners, target).max())


def create(colour: str) -> Reward:
    target = parse_colour(colour)
    score = partial(closeness, target=target, farthest=farthest_difference(target))
    return PixelReward(f"{NAME} {colour.strip()}", UNIT, SCALE, score)


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
