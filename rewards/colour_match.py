"""Colour match: the same colours, in the same shares, as a reference picture.

Sliced Wasserstein distance (Rabin et al. 2012, "Wasserstein barycenter and its application to
texture mixing") between the pixels in CIE 1976 L*a*b*; where the colours lie does not count.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Context, Reward, Spec, check_images
from .lab import lab
from .masks import region_of
from .references import references_of

NAME = "colour_match"
UNIT = "minus colour distance dE, 0 (the reference's colours) to -100 (black against white)"
SCALE = 13.9

SIDE = 256  # larger pictures are compared shrunk to about SIDE x SIDE pixels


def axes(like: Tensor) -> Tensor:
    """The 13 axes of a cube through its faces, edges and corners, of length 1: [13, 3].

    They are spread evenly: the mean of (axis . v)^2 is |v|^2 / 3 for every v.
    """
    steps = [step for step in itertools.product((1, 0, -1), repeat=3) if step > (0, 0, 0)]
    found = torch.tensor(steps, dtype=like.dtype, device=like.device)
    return found / found.norm(dim=1, keepdim=True)


class Pixels(NamedTuple):
    """Pixels projected on the axes, in rising order, and the share of each: [B, 13, N]."""

    values: Tensor
    shares: Tensor


def pixels_of(images: Tensor, region: Tensor | None = None) -> Pixels:
    """Project images [B, 3, H, W] in [0, 1] in L*a*b*; pixels count as much as the region says."""
    height, width = images.shape[-2:]
    factor = min(1.0, SIDE / (height * width) ** 0.5)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    if region is not None:
        covered = _shrunk(region, size)
        # what is outside must not bleed into the pixels at the border
        images = _shrunk(images * region, size)
        images = images / covered.clamp(min=torch.finfo(images.dtype).tiny)
        shares = (covered / covered.sum(dim=(2, 3), keepdim=True)).flatten(1)
    else:
        images = _shrunk(images, size)
        shares = images.new_full((1, size[0] * size[1]), 1 / (size[0] * size[1]))
    values, order = torch.matmul(axes(images), lab(images).flatten(2)).sort(dim=2)
    return Pixels(values, shares.unsqueeze(1).expand_as(values).gather(2, order))


def _shrunk(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, size=size, mode="bilinear", antialias=True)


def squared_transport(one: Pixels, other: Pixels) -> Tensor:
    """W2^2 = integral over q in [0, 1] of (F^-1(q) - G^-1(q))^2, on every axis: [B, 13].

    F and G are the distributions of `one` [B, 13, N] and `other` [B or 1, 13, M].
    """
    with torch.no_grad():
        f = one.shares.cumsum(dim=2)
        g = other.shares.cumsum(dim=2).expand(len(f), -1, -1).contiguous()
        f, g = f / f[..., -1:], g / g[..., -1:]
        ends = torch.cat((f, g), dim=2).sort(dim=2).values
        widths = ends.diff(dim=2, prepend=torch.zeros_like(ends[..., :1]))
        middles = ends - widths / 2  # of the stretches in which neither quantile changes
        at_f = torch.searchsorted(f, middles).clamp(max=f.shape[2] - 1)
        at_g = torch.searchsorted(g, middles).clamp(max=g.shape[2] - 1)
    theirs = other.values.expand(len(f), -1, -1).gather(2, at_g)
    return (widths * (one.values.gather(2, at_f) - theirs).square()).sum(dim=2)


@dataclass(frozen=True)
class ColourMatch:
    """score = - (sqrt(D^2 + 1) - 1), with D^2 = 3 x the mean of W2^2 over the axes, in dE.

    A picture whose colours are all off by the same dE is at that distance. Several references
    count as one picture.
    """

    name: str = NAME
    unit: str = UNIT
    scale: float = SCALE
    differentiable: bool = True
    modules: tuple[torch.nn.Module, ...] = ()
    masked: bool = True

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a reference picture."""
        images = check_images(images, self.name)
        region = region_of(context, images, self.name)
        with torch.no_grad():
            each = pixels_of(references_of(context, images, self.name))
            values, order = each.values.movedim(0, 1).flatten(1).sort(dim=1)
            shares = each.shares.movedim(0, 1).flatten(1).gather(1, order)
            reference = Pixels(values[None], shares[None])
        squared = 3 * squared_transport(pixels_of(images, region), reference).mean(dim=1)
        return 1 - (squared + 1).sqrt()


def create() -> Reward:
    return ColourMatch()


SPEC = Spec(
    NAME,
    "Colour match",
    UNIT,
    "The colours of a reference picture, in the same shares; not what it shows.",
    create,
    reference="The picture whose colours are wanted. Its size and what it shows do not count; "
    "several pictures count as one.",
    group="reference",
)
