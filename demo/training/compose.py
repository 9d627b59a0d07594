"""Compose drawings on coloured backgrounds, with captions: the training pictures."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from captions import caption
from drawings import Drawings
from vocabulary import BACKGROUND_WEIGHTS, BACKGROUNDS, STYLES, THINGS

TURNED_SHARE = 0.15
SHIFT = 2
JITTER = 10


class Batch(NamedTuple):
    """images: float [B, 3, 64, 64] in [0, 1]; captions and what is in each picture."""

    images: torch.Tensor
    captions: list[str]
    slugs: list[str]
    styles: list[str]
    backgrounds: list[str]
    colours: list[str]


class Composer:
    """Draw batches; batch number n of a seed is always the same."""

    def __init__(
        self,
        drawings: Drawings,
        seed: int,
        styles: tuple[str, ...] | None = None,
        aligned: bool = False,
    ):
        """Draw from some styles only, or all; aligned: one size, shifts by whole latent pixels."""
        words = list(STYLES.values())
        allowed = [words.index(s) for s in styles or words]
        mask = np.isin(drawings.style, allowed)
        self.drawings, self.seed, self.aligned = drawings, seed, aligned
        self.own = np.flatnonzero(mask & ~drawings.turned)
        self.turned = np.flatnonzero(mask & drawings.turned)
        self.things, self.styles = list(THINGS), words
        weights = np.array([BACKGROUND_WEIGHTS.get(b, 1.0) for b in BACKGROUNDS])
        self.weights = weights / weights.sum()
        self.palette = np.array(list(BACKGROUNDS.values()), np.float32)
        self.names = list(BACKGROUNDS)

    def batch(self, number: int, size: int) -> Batch:
        """Pick drawings, sizes, flips, shifts of at most 2 px (aligned: 4) and backgrounds."""
        rng = np.random.default_rng((self.seed, number))
        words = random.Random(f"{self.seed} {number}")
        turned = rng.random(size) < TURNED_SHARE
        pick = np.where(turned, rng.choice(self.turned, size), rng.choice(self.own, size))
        scale = rng.integers(0, self.drawings.rgba.shape[1], size)
        rgba = self.drawings.rgba[pick, np.ones_like(scale) if self.aligned else scale]
        for i in range(size):
            dy, dx = rng.integers(-SHIFT, SHIFT + 1, 2)
            if self.aligned:
                dy, dx = int(dy / 2) * 4, int(dx / 2) * 4
            rgba[i] = np.roll(rgba[i, :, ::-1] if rng.random() < 0.5 else rgba[i], (dy, dx), (0, 1))
        ground = rng.choice(len(self.names), size, p=self.weights)
        colour = self.palette[ground] + rng.uniform(-JITTER, JITTER, (size, 3))
        colour = colour.clip(0, 255).astype(np.float32)[:, None, None, :]
        images = rgba[..., :3] + (1 - rgba[..., 3:].astype(np.float32) / 255) * colour
        pixels = torch.from_numpy(images.clip(0, 255) / 255).permute(0, 3, 1, 2).float()
        texts, slugs, styles, grounds, colours = [], [], [], [], []
        for i, p in enumerate(pick):
            slug, word = self.things[self.drawings.slug[p]], self.drawings.colour[p]
            style, name = self.styles[self.drawings.style[p]], self.names[ground[i]]
            texts.append(caption(words, slug, style, word, bool(turned[i]), name))
            slugs.append(slug)
            styles.append(style)
            grounds.append(name)
            colours.append(word if turned[i] else "")
        return Batch(pixels.contiguous(), texts, slugs, styles, grounds, colours)
