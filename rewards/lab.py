"""Colours as the eye sees them: CIE 1976 L*a*b*, where distances are visible differences dE."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import RewardError

Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""

# sRGB primaries, D65 white (IEC 61966-2-1), each row divided by the white point
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def parse_colour(text: str, reward: str) -> Colour:
    """Red, green, blue in [0, 1] of "#rrggbb" or "#rgb"; raises RewardError for anything else.

    Colour pickers may add an opacity ("#rrggbbaa"): it says nothing about a colour, so it is left.
    """
    digits = text.strip().removeprefix("#")
    if re.fullmatch(r"[0-9a-fA-F]{3}", digits):
        digits = "".join(digit * 2 for digit in digits)
    if not re.fullmatch(r"[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", digits):
        raise RewardError(
            f'{reward}: "{text}" is not a colour. Write it as #rrggbb, for example #ff0000 for red.'
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


def length(vectors: Tensor, dim: int) -> Tensor:
    """sqrt(|v|^2 + 1) - 1: |v| in dE, rounded off below one just noticeable difference.

    So it has a gradient everywhere, also at 0.
    """
    return (vectors.square().sum(dim=dim) + 1).sqrt() - 1


def differences(images: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Colour difference dE (see `length`) of every pixel to K colours: [B,3,H,W] -> [B,K,H,W]."""
    targets = torch.tensor(colours, dtype=images.dtype, device=images.device).view(-1, 3, 1, 1)
    return length(lab(images).unsqueeze(1) - lab(targets), dim=2)
