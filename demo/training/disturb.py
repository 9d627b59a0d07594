"""Disturb pictures so that the image-text models forgive what a small generator gets wrong."""

from __future__ import annotations

import math

import torch
from latent_space import LatentSpace
from torch.nn import functional


def moved(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Rotate by at most 12 degrees, scale by 0.8 to 1.25, shift by at most 5 px."""
    count = len(images)
    turn, size, x, y = (torch.rand(count, generator=rng) * 2 - 1 for _ in range(4))
    angle, scale = turn * math.radians(12), torch.exp(size * 0.22)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cos, -sin, x * 0.16], 1), torch.stack([sin, cos, y * 0.16], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blurred(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Shrink the whole batch to 20-64 px and enlarge it again."""
    small = int(torch.randint(20, 65, (), generator=rng))
    down = functional.interpolate(images, (small, small), mode="bilinear", antialias=True)
    return functional.interpolate(down, images.shape[-2:], mode="bicubic")


def patched(images: torch.Tensor, space: LatentSpace, rng: torch.Generator) -> torch.Tensor:
    """To the latent space and back, with noise of random strength (at most 0.6)."""
    strength = torch.rand(len(images), 1, 1, 1, generator=rng) ** 2 * 0.6
    latents = space.encode(images)
    return space.decode(latents + strength * torch.randn(latents.shape, generator=rng))


def disturbed(images: torch.Tensor, space: LatentSpace, rng: torch.Generator) -> torch.Tensor:
    """Every disturbance, each on a random part of the batch; result in [0, 1]."""

    def some(changed: torch.Tensor, now: torch.Tensor, share: float) -> torch.Tensor:
        chosen = torch.rand(len(now), 1, 1, 1, generator=rng) < share
        return torch.where(chosen, changed, now)

    out = some(moved(images, rng), images, 0.8)
    out = some(patched(out, space, rng), out, 0.5)
    out = some(blurred(out, rng), out, 0.5)
    gain = 1 + (torch.rand(len(out), 3, 1, 1, generator=rng) - 0.5) * 0.2
    out = some((out - 0.5) * gain + 0.5, out, 0.5)
    noise = torch.randn(out.shape, generator=rng)
    strength = torch.rand(len(out), 1, 1, 1, generator=rng) ** 2 * 0.12
    return (out + strength * noise).clamp(0, 1)
