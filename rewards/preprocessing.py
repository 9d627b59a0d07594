"""What a model's own image processor does, in differentiable torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import RewardError, clamp_straight_through

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them


@dataclass(frozen=True)
class Preprocessing:
    """resize: the shorter side, or (height, width), or None. crop: (height, width), or None."""

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """The settings in preprocessor_config.json; CLIP's own at image_size where there is no file."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocessing(image_size, (image_size, image_size))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return _parse(config, image_size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"The file {path} cannot be used: {error}. Download it again, or choose another model."
        ) from error


def _parse(config: dict[str, Any], image_size: int) -> Preprocessing:
    resample = config.get("resample", 3)
    if resample not in _MODES:
        raise ValueError(f"resample is {resample}, only 2 (bilinear) and 3 (bicubic) are known")
    factor = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ValueError("rescale_factor is not 1/255")
    resize = _size(config.get("size", image_size)) if config.get("do_resize", True) else None
    crop = (
        _size(config.get("crop_size", image_size)) if config.get("do_center_crop", True) else None
    )
    normal = config.get("do_normalize", True)
    return Preprocessing(
        resize=resize,
        crop=(crop, crop) if isinstance(crop, int) else crop,
        mode=_MODES[resample],
        mean=tuple(config.get("image_mean", CLIP_MEAN)) if normal else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std", CLIP_STD)) if normal else (1.0, 1.0, 1.0),
    )


def _size(value: int | dict[str, int]) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    if "shortest_edge" in value:
        return int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])


def preprocess(images: Tensor, settings: Preprocessing) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, h, w] as the model wants it: resize, crop, normalise."""
    images = center_crop(resize(images, settings.resize, settings.mode), settings.crop)
    mean = torch.tensor(settings.mean, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    std = torch.tensor(settings.std, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return (images - mean) / std


def resize(images: Tensor, size: int | tuple[int, int] | None, mode: str) -> Tensor:
    """Resize as Pillow does (antialiased), clamped to [0, 1]; an int is the shorter side."""
    height, width = images.shape[-2:]
    if isinstance(size, int):
        shorter = min(height, width)
        size = (height * size // shorter, width * size // shorter)
    if size is None or size == (height, width):
        return images
    # Pillow clamps after each of its two passes, which shows at hard edges.
    for part in ((height, size[1]), size):
        images = F.interpolate(images, size=part, mode=mode, antialias=True, align_corners=False)
        # White and black areas overshoot by rounding: a hard clamp would drop their gradient.
        images = clamp_straight_through(images, 0.0, 1.0)
    return images


def center_crop(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The middle [h, w] of the images; black where they are smaller."""
    if size is None:
        return images
    (height, width), (h, w) = images.shape[-2:], size
    if h > height or w > width:
        dx, dy = max(0, w - width), max(0, h - height)
        images = F.pad(images, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
        height, width = images.shape[-2:]
    top, left = (height - h) // 2, (width - w) // 2
    return images[..., top : top + h, left : left + w]
