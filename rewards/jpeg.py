"""The size of a picture as a JPEG file: DDPO's and the DNO paper's black-box reward.

The unit is bits per pixel and not kB, because a reward's scale is one number for every picture:
kB grow with the number of pixels, bits per pixel do not. kB = bits per pixel * pixels / 8000.
"""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from .base import Input

UNIT = "bits per pixel of the JPEG file"

SCALES = {10: 0.103, 50: 0.265, 75: 0.386, 90: 0.600, 95: 0.787, 100: 1.171}
"""Spread over plain samples of the demo model by quality (benchmarks/reward_scales.py)."""

QUALITY = Input(
    "quality",
    "int",
    95,
    "The JPEG quality that the size is taken at. Higher counts fine grain as well; lower only "
    "coarse detail. The paper's is 95, usually 75 to 95.",
    min=1,
    max=100,
    step=1,
    advanced=True,
)


def jpeg_bytes(pixels: Tensor, quality: int) -> int:
    """Size of the file that Pillow writes for one picture, uint8 [H,W,3]."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="JPEG", quality=quality)
    return file.tell()


@torch.no_grad()
def bits_per_pixel(images: Tensor, quality: int) -> Tensor:
    """8 * bytes / (H W) of every image [B,3,H,W] in [0,1], in the 8 bits it is saved with: [B].

    An image that holds NaN gives NaN.
    """
    pixels = (images * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous().cpu()
    area = images.shape[2] * images.shape[3]
    sizes = [8 * jpeg_bytes(picture, quality) / area for picture in pixels]
    broken = images.isnan().flatten(1).any(1)
    return torch.tensor(sizes, device=images.device).masked_fill(broken, math.nan)


def scale(quality: int) -> float:
    """The measured spread, between two measured qualities by straight lines."""
    known = sorted(SCALES)
    quality = min(max(quality, known[0]), known[-1])
    above = next(each for each in known if each >= quality)
    below = max(each for each in known if each <= quality)
    share = (quality - below) / (above - below) if above > below else 0.0
    return SCALES[below] + share * (SCALES[above] - SCALES[below])
