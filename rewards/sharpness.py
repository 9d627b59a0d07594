"""Sharpness: the variance of the Laplacian (Pech-Pacheco et al. 2000, "Diatom autofocusing")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PixelReward, Reward, Spec
from .masks import average

NAME = "sharpness"
UNIT = "variance of the Laplacian of luma, 0 (flat) to 16 (a chessboard of single pixels)"
SCALE = 0.0123

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L" and OpenCV's grey
_NEIGHBOURS = ((0, 1), (2, 1), (1, 0), (1, 2))


def laplacian(images: Tensor, region: Tensor | None = None) -> Tensor:
    """Sum over the 4 neighbours n of w_n (luma_n - luma), [B, 3, H, W] -> [B, 1, H, W].

    w is the region, 1 without one and 0 beyond the border: a neighbour outside adds nothing.
    """
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    luma = (images * weights).sum(dim=1, keepdim=True)
    inside = torch.ones_like(luma[:1]) if region is None else region
    height, width = luma.shape[-2:]
    around, weight = F.pad(luma, (1, 1, 1, 1)), F.pad(inside, (1, 1, 1, 1))
    total = torch.zeros_like(luma)
    for top, left in _NEIGHBOURS:
        window = (..., slice(top, top + height), slice(left, left + width))
        total = total + weight[window] * (around[window] - luma)
    return total


def sharpness(images: Tensor, region: Tensor | None = None) -> Tensor:
    """score = variance over the pixels of the Laplacian of luma, with x in [0, 1]."""
    edges = laplacian(images, region)
    return average((edges - average(edges, region).view(-1, 1, 1, 1)).square(), region)


def create() -> Reward:
    return PixelReward(NAME, UNIT, SCALE, sharpness, masked=True)


SPEC = Spec(NAME, "Sharpness", UNIT, "Crisper edges and more fine detail, or grain.", create)
