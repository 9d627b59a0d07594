"""Masks: which part of a picture counts, and how much."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Context, RewardError

LEAST = 1 / 255
"""What a mask holds below this is outside."""

_SOCKET = "the mask socket of Reward Loader"


def region_of(context: Context | None, images: Tensor, reward: str) -> Tensor | None:
    """How much each pixel counts, [1 or B, 1, H, W] in [0, 1], greatest value 1; None: no mask.

    The mask is brought to the images' size (bilinear, antialiased) and divided by its greatest
    value; below 1/255 it is 0. Raises RewardError for a mask that is empty, holds NaN, or is of
    another number or shape.
    """
    masks = context.masks if context else None
    if masks is None:
        return None
    if masks.ndim != 4 or masks.shape[1] != 1 or not masks.numel():
        raise RewardError(
            f"{reward}: the masks are {list(masks.shape)}. "
            f"Connect a MASK to {_SOCKET}, or give [1 or batch, 1, height, width]."
        )
    if len(masks) not in (1, len(images)):
        raise RewardError(
            f"{reward} has {len(masks)} masks for {len(images)} images. "
            f"Connect one mask for all images, or one for each, to {_SOCKET}."
        )
    if not torch.isfinite(masks).all():
        raise RewardError(
            f"{reward}: the mask holds values that are not numbers. "
            f"Connect another mask to {_SOCKET}."
        )
    # clamp makes a tensor of its own: autograd refuses those made in inference mode
    masks = masks.detach().to(images.device, images.dtype).clamp(0, 1)
    size = images.shape[-2:]
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks, size=tuple(size), mode="bilinear", antialias=True)
    peaks = masks.amax(dim=(2, 3), keepdim=True)
    empty = (peaks.flatten() < LEAST).nonzero().flatten().tolist()
    if empty:
        which = f"mask {empty[0] + 1} of {len(masks)}" if len(masks) > 1 else "the mask"
        raise RewardError(
            f"{reward}: {which} is empty, so no part of the picture counts. "
            f"Paint the region that should, or disconnect {_SOCKET}."
        )
    share = masks / peaks
    return torch.where(share < LEAST, 0.0, share)


def average(values: Tensor, region: Tensor | None) -> Tensor:
    """Mean of values [B, C, H, W] over all but the batch, pixels weighted by the region: [B]."""
    if region is None:
        return values.mean(dim=(1, 2, 3))
    weighted = (values * region).mean(dim=1).sum(dim=(1, 2))
    return weighted / region.sum(dim=(1, 2, 3))
