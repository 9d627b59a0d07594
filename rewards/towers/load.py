"""A model's folder or file to a tower, loaded once."""

from __future__ import annotations

from pathlib import Path

from .cache import kept, once, stamps
from .folder import OPEN_CLIP_CONFIG, existing, look_into
from .open_clip_tower import load_open_clip_file, load_open_clip_folder, open_clip_weights
from .precision import dtype_of
from .protocols import ImageTextTower, ImageTower
from .reading import reading
from .transformers_tower import load_image, load_image_text


def load_tower(path: Path, reward: str, precision: str = "auto") -> ImageTextTower:
    """The CLIP or SigLIP of a transformers or open_clip folder; reward: named in errors.

    precision: "auto" (the file's; float32 on a CPU), "float32", "float16" or "bfloat16". A file
    instead of a folder is read as open_clip's. Raises RewardError.
    """
    dtype = dtype_of(precision, reward)
    if path.is_file():
        return load_open_clip_file(path, reward, precision)
    path = existing(path, reward)
    with reading(path, reward):
        if is_open_clip(path):
            weights = open_clip_weights(path, reward)
            key = ("open_clip folder", *stamps([weights, *sorted(path.glob("*.json"))]), dtype)
            return once(key, lambda: load_open_clip_folder(path, weights, dtype, reward))
        folder = look_into(path, reward, text=True)
        key = ("whole", *stamps(folder.files), dtype)
        return once(key, lambda: load_image_text(folder, dtype, reward))


def load_image_tower(path: Path, reward: str, precision: str = "auto") -> ImageTower:
    """The picture half alone, where the format allows; also of folders that have no other.

    Where the whole model is in memory, that one. Arguments and errors as in `load_tower`.
    """
    dtype = dtype_of(precision, reward)
    if path.is_file() or is_open_clip(path):
        return load_tower(path, reward, precision)
    path = existing(path, reward)
    with reading(path, reward):
        folder = look_into(path, reward, text=False)
        marks = (*stamps(folder.files), dtype)
        whole: ImageTower | None = kept(("whole", *marks))
        return whole or once(("pictures", *marks), lambda: load_image(folder, dtype, reward))


def is_open_clip(path: Path) -> bool:
    """Whether a folder is open_clip's. Some hold both formats: then transformers' is taken."""
    both = (path / "config.json").is_file() and any(
        (path / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")
    )
    return (path / OPEN_CLIP_CONFIG).is_file() and not both
