"""Draw icon.png, the pack's icon in the registry: python tools/draw_icon.py

Noise on the left, and the curve that climbs out of it to a bright point.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FILE = Path(__file__).resolve().parent.parent / "icon.png"
SIZE, FINER = 400, 4
GROUND, CURVE, POINT = (24, 27, 38), (88, 166, 255), (255, 196, 61)


def height(x: float) -> float:
    """The curve over the icon's width, both from 0 to 1: a climb that levels off."""
    return 0.16 + 0.62 / (1 + math.exp(-9 * (x - 0.56)))


def draw() -> Image.Image:
    side = SIZE * FINER
    icon = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(icon)
    pen.rounded_rectangle((0, 0, side - 1, side - 1), side // 6, fill=GROUND)
    random = np.random.default_rng(7)
    for _ in range(260):
        x, spread = random.uniform(0.07, 0.80), random.normal()
        fade = 1 - x / 0.86
        y = height(x) + 0.17 * fade * spread
        if not 0.06 < y < 0.94:
            continue
        radius = side * 0.010 * (0.5 + fade)
        mixed = [
            round(g + (c - g) * (0.25 + 0.35 * fade)) for g, c in zip(GROUND, CURVE, strict=True)
        ]
        _dot(pen, x, y, radius, tuple(mixed), side)
    for x in np.linspace(0.10, 0.84, 1000).tolist():
        _dot(pen, x, height(x), side / 52, CURVE, side)
    _dot(pen, 0.84, height(0.84), side * 0.068, GROUND, side)
    _dot(pen, 0.84, height(0.84), side * 0.052, POINT, side)
    return icon.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _dot(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    radius: float,
    colour: tuple[int, ...],
    side: int,
) -> None:
    x, y = side * x, side * (1 - y)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


if __name__ == "__main__":
    draw().save(FILE, optimize=True)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")
