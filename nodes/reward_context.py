"""What a reward scores against: the prompt, reference pictures and mask of Reward Loader."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rewards import Context, RewardError, Spec

NODE = "Reward Loader"


def context_of(
    spec: Spec, prompt: str | None, reference: Tensor | None, mask: Tensor | None
) -> Context:
    """Raises RewardError for what is needed and missing, or cannot be used."""
    return Context(
        prompts=_prompts(spec, prompt),
        references=_references(spec, reference),
        masks=None if mask is None else masks_of(mask),
    )


def _prompts(spec: Spec, prompt: str | None) -> tuple[str, ...]:
    if not spec.prompt:
        return ()
    if prompt and prompt.strip():
        return (prompt,)
    if spec.needs_prompt:
        raise RewardError(
            f"{NODE}: {spec.label} needs to know what the picture should show. "
            "Connect a text to its prompt socket."
        )
    return ()


def _references(spec: Spec, images: Tensor | None) -> Tensor | None:
    if not spec.reference:
        return None
    if images is None:
        raise RewardError(
            f"{NODE}: {spec.label} needs a picture to compare with. "
            "Connect one to its reference socket."
        )
    if images.ndim != 4 or images.numel() == 0:
        raise RewardError(
            f"{NODE}: the reference of {spec.label} is empty. Connect a picture to its reference "
            "socket."
        )
    if images.shape[-1] != 3:
        raise RewardError(
            f"{NODE}: the reference of {spec.label} has {images.shape[-1]} channels, not red, "
            "green and blue. Put Split Image with Alpha before its reference socket."
        )
    if not bool(images.isfinite().all()):
        raise RewardError(
            f"{NODE}: the reference of {spec.label} holds NaN or infinity. "
            "Connect another picture to its reference socket."
        )
    return _own(images.movedim(-1, 1))


def masks_of(mask: Tensor) -> Tensor:
    """MASK [B,H,W] or [H,W] -> [B,1,H,W] in [0,1]. Raises RewardError for an unusable one."""
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.ndim != 3 or masks.numel() == 0:
        raise RewardError(
            f"{NODE}: the mask has the shape {list(mask.shape)}, not that of pictures. "
            "Connect a MASK to its mask socket."
        )
    if not bool(masks.isfinite().all()):
        raise RewardError(
            f"{NODE}: the mask holds NaN or infinity. Connect another one to its mask socket."
        )
    masks = _own(masks[:, None])
    if bool((masks.flatten(1).amax(dim=1) == 0).any()):
        raise RewardError(
            f"{NODE}: the mask is black everywhere, so nothing would be scored. Paint the region "
            "in white, or unplug the mask socket."
        )
    return masks


def _own(tensor: Tensor) -> Tensor:
    """A float32 copy in [0, 1] that autograd takes: nodes run in inference mode."""
    with torch.inference_mode(False):
        return tensor.to(torch.float32, copy=True).clamp(0, 1).contiguous()
