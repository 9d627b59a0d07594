"""Pillow's drawing, in the units of a chart that is 1024 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]


@lru_cache(maxsize=32)
def font(size: int) -> Any:
    """Pillow's own font at `size` pixels: no font file is needed on any system."""
    return ImageFont.load_default(size)


class Pen:
    """Draws on a canvas enlarged by `scale`; all coordinates and sizes are before enlarging."""

    def __init__(self, canvas: Image.Image, scale: float) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._scale = scale

    def text(self, at: Point, text: str, size: int, fill: str, anchor: str = "ls") -> None:
        """Text at a baseline; `anchor` is Pillow's."""
        self._draw.text(self._up(at), text, fill, self._font(size), anchor)

    def bold(self, at: Point, text: str, size: int, fill: str) -> float:
        """Text with thickened outlines, as the built-in font has no bold cut; returns its length.

        Letters are spaced a little wider, by as much as they grow.
        """
        stroke = max(1, round(self._scale / 4))
        for i, letter in enumerate(text):
            x = at[0] + self.length(text[:i], size) + i * stroke / self._scale
            spot = self._up((x, at[1]))
            self._draw.text(spot, letter, fill, self._font(size), "ls", stroke_width=stroke)
        return self.length(text, size) + len(text) * stroke / self._scale

    def length(self, text: str, size: int) -> float:
        return float(self._draw.textlength(text, self._font(size))) / self._scale

    def fit(self, text: str, room: float, size: int) -> str:
        """The text, or as much of it as `room` holds with an ellipsis ("" if too little)."""
        if self.length(text, size) <= room:
            return text
        while text and self.length(text + "...", size) > room:
            text = text[:-1]
        return text.rstrip(" ,;:(") + "..." if len(text) > 2 else ""

    def wrap(self, text: str, room: float, size: int) -> list[str]:
        """The text broken at spaces into lines no longer than `room`."""
        lines = [""]
        for word in text.split():
            joined = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.length(joined, size) > room:
                lines.append(word)
            else:
                lines[-1] = joined
        return [self.fit(line, room, size) for line in lines]

    def line(self, points: Sequence[Point], fill: str, width: float) -> None:
        """A line through the points, with round joints."""
        if len(points) > 1:
            thick = max(1, round(width * self._scale))
            self._draw.line([self._up(p) for p in points], fill, thick, joint="curve")

    def dashes(self, start: Point, end: Point, fill: str) -> None:
        """A dashed straight line."""
        count = max(1, round(math.dist(start, end) / 4))
        for i in range(0, count, 2):
            ends = (i / count, min(1.0, (i + 1) / count))
            self.line([_between(start, end, t) for t in ends], fill, 1)

    def box(self, top_left: Point, bottom_right: Point, fill: str) -> None:
        self._draw.rectangle([self._up(top_left), self._up(bottom_right)], fill)

    def dot(self, at: Point, radius: float, fill: str, ring: float = 1.5) -> None:
        """A filled circle with a white ring around it."""
        for size, colour in ((radius + ring, "white"), (radius, fill)):
            corners = [(at[0] - size, at[1] - size), (at[0] + size, at[1] + size)]
            self._draw.ellipse([self._up(p) for p in corners], colour)

    def _up(self, point: Point) -> Point:
        return point[0] * self._scale, point[1] * self._scale

    def _font(self, size: int) -> Any:
        return font(round(size * self._scale))


def _between(start: Point, end: Point, t: float) -> Point:
    return start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t
