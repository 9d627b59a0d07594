"""Reference pictures: what the images are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Context, RewardError, clamp_straight_through


def references_of(context: Context | None, images: Tensor, reward: str) -> Tensor:
    """The references [R, 3, h, w] in [0, 1] in the images' dtype, on their device.

    Raises RewardError where there is none, or one is no RGB picture or holds NaN.
    """
    references = context.references if context else None
    if references is None or not references.numel():
        raise RewardError(
            f"{reward} has no picture to compare with. "
            "Connect an IMAGE to the reference socket of Reward Loader."
        )
    if references.ndim != 4 or references.shape[1] != 3 or not references.is_floating_point():
        raise RewardError(
            f"{reward}: the reference is {references.dtype} {list(references.shape)}. "
            "Connect a plain RGB picture, without alpha, to the reference socket of Reward Loader."
        )
    if not torch.isfinite(references).all():
        raise RewardError(
            f"{reward}: the reference holds values that are not numbers. "
            "Connect another picture to the reference socket of Reward Loader."
        )
    # clamp makes a tensor of its own: autograd refuses those made in inference mode
    return references.detach().to(images.device, images.dtype).clamp(0, 1)


def fitted(references: Tensor, size: tuple[int, int]) -> Tensor:
    """References [R, 3, h, w] at another (height, width): their middle in that shape, resized.

    Bicubic, antialiased; nothing is stretched.
    """
    (h, w), (height, width) = references.shape[-2:], size
    if (h, w) == size:
        return references
    shown_h, shown_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    shown_h, shown_w = max(1, shown_h), max(1, shown_w)
    top, left = (h - shown_h) // 2, (w - shown_w) // 2
    middle = references[..., top : top + shown_h, left : left + shown_w]
    resized = F.interpolate(middle, size=size, mode="bicubic", antialias=True, align_corners=False)
    return clamp_straight_through(resized, 0.0, 1.0)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike in shape, dtype, device and every number."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(one, other)
