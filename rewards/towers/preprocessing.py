"""What a model's own image processor does, in differentiable torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import clamp_straight_through

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

Fit = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True)
class Preprocessing:
    """resize, crop: (height, width), or None for none of it. fill: grey of what a crop adds.

    fit: which side becomes that of `resize`, both keeping the picture's shape, or both sides do.
    rounded: the crop's corner is rounded to the nearest pixel, as torchvision does, and not down,
    as transformers does. eight_bit: pictures are resized by Pillow, which cuts at black and white.
    """

    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Fit = "shortest"
    rounded: bool = False
    eight_bit: bool = True
    fill: float = 0.0

    def fitted(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The (height, width) a picture of that shape is resized to; at least one pixel."""
        height, width = shape
        if self.resize is None:
            return height, width
        if self.fit == "squash":
            return self.resize
        if self.fit == "shortest" and self.resize[0] == self.resize[1]:
            side, shorter = self.resize[0], min(height, width)
            return height * side // shorter, width * side // shorter
        ratios = (self.resize[0] / height, self.resize[1] / width)
        ratio = min(ratios) if self.fit == "longest" else max(ratios)
        return max(1, round(height * ratio)), max(1, round(width * ratio))


def clip_preprocessing(size: int) -> Preprocessing:
    """transformers' CLIP: shorter side to `size`, centre crop."""
    return Preprocessing((size, size), (size, size))


def siglip_preprocessing(size: int) -> Preprocessing:
    """transformers' SigLIP: both sides to `size`; pixels to -1..1."""
    return Preprocessing((size, size), None, mean=HALF, std=HALF, fit="squash")


def hps_preprocessing(size: int) -> Preprocessing:
    """HPS: longer side to `size`, black around; resized as a tensor, which is not cut at 0 and 1.

    tgxs002/HPSv2, hpsv2/src/open_clip/transform.py
    """
    return Preprocessing((size, size), (size, size), fit="longest", rounded=True, eight_bit=False)


def preprocess(images: Tensor, settings: Preprocessing) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, h, w] as the model wants it: resize, crop, normalise."""
    images = center_crop(resize(images, settings), settings)
    mean = torch.tensor(settings.mean, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    std = torch.tensor(settings.std, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return (images - mean) / std


def resize(images: Tensor, settings: Preprocessing) -> Tensor:
    """Resize as Pillow does, antialiased and clamped to [0, 1], or as a tensor."""
    size = settings.fitted(images.shape[-2:])
    if size == tuple(images.shape[-2:]):
        return images
    if not settings.eight_bit:
        return _interpolate(images, size, settings.mode)
    # Pillow clamps after each of its two passes, which shows at hard edges.
    for part in ((images.shape[-2], size[1]), size):
        images = _interpolate(images, part, settings.mode)
        # White and black areas overshoot by rounding: a hard clamp would drop their gradient.
        images = clamp_straight_through(images, 0.0, 1.0)
    return images


def _interpolate(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)


def center_crop(images: Tensor, settings: Preprocessing) -> Tensor:
    """The middle [h, w] of the images, on `fill` where they are smaller."""
    if settings.crop is None:
        return images
    (height, width), (h, w) = images.shape[-2:], settings.crop
    if h > height or w > width:
        dx, dy = max(0, w - width), max(0, h - height)
        around = (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2)
        images = F.pad(images, around, value=settings.fill)
        height, width = images.shape[-2:]
    top, left = (_half(height - h, settings.rounded), _half(width - w, settings.rounded))
    return images[..., top : top + h, left : left + w]


def _half(margin: int, rounded: bool) -> int:
    return round(margin / 2) if rounded else margin // 2
