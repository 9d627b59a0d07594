"""Pictures with the statistics of natural ones, in odd sizes and shapes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from matplotlib import cbook
from PIL import Image, ImageDraw
from torch import Tensor

SIZES = (
    (257, 301),
    (333, 219),
    (97, 65),
    (640, 221),
    (127, 513),
    (224, 224),
    (119, 63),
    (451, 338),
)
"""(width, height) of the drawn ones, some of which leave a crop's middle between two pixels."""


@lru_cache(maxsize=1)
def natural_pictures() -> list[Image.Image]:
    """Photographs (a portrait, and parts of it) and landscapes of 1/f noise, edges and writing."""
    photograph = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    photographs = [
        photograph,
        photograph.crop((101, 53, 402, 300)),
        photograph.crop((7, 11, 506, 148)),
        photograph.crop((150, 20, 271, 591)),
    ]
    return [*photographs, *(_landscape(*size) for size in SIZES)]


def as_images(picture: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1], as ComfyUI holds a picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def _landscape(width: int, height: int) -> Image.Image:
    """Clouds of 1/f noise over a gradient, with hard edges, thin lines and writing on them."""
    rng = np.random.default_rng(width * 1000 + height)
    slope = np.linspace(0.15, 0.85, height)[:, None, None]
    clouds = np.stack([_pink(rng, width, height) for _ in range(3)], axis=-1)
    pixels = np.clip(slope + 0.14 * clouds, 0, 1)
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((width // 8, height // 8, width // 3, height // 2), fill=(255, 255, 255))
    draw.ellipse((width // 2, height // 3, width - 4, height - 6), fill=(190, 30, 45))
    draw.line((0, height - 1, width - 1, height // 5), fill=(0, 0, 0), width=1)
    draw.text((width // 4, height * 3 // 4), f"{width} x {height}", fill=(250, 240, 90))
    return picture


def _pink(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise whose amplitude falls as 1/frequency, as that of photographs does; variance 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency, s=(height, width))
    return noise / noise.std()
