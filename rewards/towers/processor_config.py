"""The settings that transformers keeps beside a model for its image processor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..base import RewardError
from .preprocessing import Preprocessing, clip_preprocessing, siglip_preprocessing

_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_NAMES = ("preprocessor_config.json", "processor_config.json")


def read_preprocessing(folder: Path, image_size: int, clip: bool = True) -> Preprocessing:
    """The settings in the folder; CLIP's own, or SigLIP's, at image_size where there are none."""
    usual = clip_preprocessing(image_size) if clip else siglip_preprocessing(image_size)
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        return usual
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        # transformers 5 may save all processors of a model together.
        return _parse(config.get("image_processor", config), usual)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"The file {path} cannot be used: {error}. Download it again, or choose another model."
        ) from error


def _parse(config: dict[str, Any], usual: Preprocessing) -> Preprocessing:
    resample = config.get("resample", 3)
    if resample not in _MODES:
        raise ValueError(f"resample is {resample}, only 2 (bilinear) and 3 (bicubic) are known")
    factor = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ValueError("rescale_factor is not 1/255")
    size = config.get("size") or usual.resize
    crop = config.get("crop_size") or usual.resize
    by_side = isinstance(size, int) or (isinstance(size, dict) and "shortest_edge" in size)
    by_default = usual.fit == "shortest" and not config.get("size")
    cropped = config.get("do_center_crop")
    if cropped is None:
        cropped = usual.crop is not None
    normal = config.get("do_normalize", True)
    return Preprocessing(
        resize=_size(size) if config.get("do_resize", True) else None,
        crop=_size(crop) if cropped else None,
        mode=_MODES[resample],
        mean=tuple(config.get("image_mean") or usual.mean) if normal else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std") or usual.std) if normal else (1.0, 1.0, 1.0),
        fit="shortest" if by_side or by_default else "squash",
    )


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple):
        return value
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])
