"""Any reward, limited to a part of the picture.

A reward that heeds `context.masks` itself says so with an attribute `masked`. For every other, the
picture is cropped to the mask's bounding box and what the mask leaves out is grey. References are
cropped alike if the reward compares pictures place by place (attribute `aligned`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Context, Reward, check_images
from .masks import region_of
from .references import fitted, references_of

GREY = 0.5
LEAST_SIDE = 64  # of a crop, where the picture is that large: below it models see a blur


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, the last of each not included."""

    top: int
    bottom: int
    left: int
    right: int


def limited(reward: Reward) -> Reward:
    """The reward, looking at the region of `context.masks` only; without masks it is unchanged."""
    return reward if isinstance(reward, Limited) else Limited(reward)


@dataclass(frozen=True)
class Limited:
    """A reward that sees nothing of what the mask leaves out."""

    reward: Reward

    @property
    def name(self) -> str:
        return f"{self.reward.name} (masked)"

    @property
    def unit(self) -> str:
        return self.reward.unit

    @property
    def scale(self) -> float:
        return self.reward.scale

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.reward.modules

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError for a mask that is empty, NaN or misshaped."""
        context = context or Context()
        if getattr(self.reward, "masked", False):
            return self.reward.score(images, context)
        images = check_images(images, self.name)
        region = region_of(context, images, self.name)
        if region is None:
            return self.reward.score(images, context)
        if all(torch.equal(region[:1], other[None]) for other in region[1:]):
            return self._score(images, region[:1], context)
        alone = [
            self._score(images[i : i + 1], region[i : i + 1], of_image(context, i, len(images)))
            for i in range(len(images))
        ]
        return torch.cat(alone)

    def _score(self, images: Tensor, region: Tensor, context: Context) -> Tensor:
        box = bounding_box(region)
        references = context.references
        if references is not None and getattr(self.reward, "aligned", False):
            references = references_of(context, images, self.name)
            height, width = images.shape[-2:]
            references = cropped(fitted(references, (height, width)), region, box)
        context = replace(context, masks=None, references=references)
        return self.reward.score(cropped(images, region, box), context)


def of_image(context: Context, index: int, count: int) -> Context:
    """The context of one image out of `count`: its own prompt."""
    own = context.prompts[index : index + 1] if len(context.prompts) == count else context.prompts
    return replace(context, prompts=own)


def cropped(images: Tensor, region: Tensor, box: Box) -> Tensor:
    """The box of region * x + (1 - region) * grey."""
    window = (..., slice(box.top, box.bottom), slice(box.left, box.right))
    inside = images[window]
    return torch.full_like(inside, GREY).lerp(inside, region[window])


def bounding_box(region: Tensor) -> Box:
    """The box around what a region [1, 1, H, W] holds, at least 64 a side.

    As square as the picture allows, because models squeeze or cut what is long.
    """
    height, width = region.shape[-2:]
    rows, columns = region[0, 0].any(dim=1), region[0, 0].any(dim=0)
    top, bottom = _ends(rows)
    left, right = _ends(columns)
    side = max(bottom - top, right - left, LEAST_SIDE)
    return Box(*_widened(top, bottom, side, height), *_widened(left, right, side, width))


def _ends(filled: Tensor) -> tuple[int, int]:
    places = filled.nonzero().flatten()
    return int(places[0]), int(places[-1]) + 1


def _widened(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """The stretch made `length` long around its middle, within 0..limit."""
    length = min(length, limit)
    start = min(max(start - (length - (end - start)) // 2, 0), limit - length)
    return start, start + length
