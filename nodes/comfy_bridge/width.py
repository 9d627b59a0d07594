"""How many noises one run of the sampler may take side by side, for the same batch of images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .scope import controls_of

MOST_IMAGES = 64
"""Beyond, an accelerator has long been busy, and a cancel would wait."""

GUIDANCE_PATCHES = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
)
NETWORK_PATCHES = ("patches", "patches_replace")
BATCH_WRAPPERS = (
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.APPLY_MODEL,
    WrappersMP.DIFFUSION_MODEL,
)

MEMORY_SHARE = 0.5
"""Of the free memory: ComfyUI's estimate of a forward is one, and the fragments add up."""

CPU_MEMORY_SHARE = 0.125
"""Of all main memory: what is free differs from run to run, and with it the last bits."""


def runs_wide(guider: Any, batch: int) -> bool:
    """Whether c noises for each of the `batch` images may run as one batch [c B,...].

    ComfyUI repeats conditioning to the batch it meets, whole batches one after another. That is
    right where there is one entry, or one for every image. Else images would get each other's
    prompts, masks or hints, as they would where a hint differs from image to image. Patches of the
    guidance or of the network may look at the whole batch (a mean over it, a reference in it):
    with any of them, or with a guider of its own arithmetic, probes run by themselves.
    """
    if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
        return False
    if guider.model_options.get("context_handler") is not None or _is_patched(guider):
        return False
    for entry in chain.from_iterable(guider.conds.values()):
        if "gligen" in entry or "num_video_frames" in entry.get("model_conds", {}):
            return False
        if not {len(each) for each in _batched(entry)} <= {1, batch}:
            return False
    return all(_hints(control) <= {1} for control in controls_of(guider.conds))


def _is_patched(guider: Any) -> bool:
    options = guider.model_options
    inner = options.get("transformer_options", {})
    wrappers = [options.get("wrappers", {}), inner.get("wrappers", {})]
    wrappers.append(guider.inner_model.current_patcher.wrappers)
    return (
        any(options.get(name) for name in GUIDANCE_PATCHES)
        or any(inner.get(name) for name in NETWORK_PATCHES)
        or any(each.get(kind) for each in wrappers for kind in BATCH_WRAPPERS)
    )


def memory_room(guider: Any, shape: tuple[int, ...]) -> int:
    """How many batches of latents [B,C,h,w] to run side by side; at least 1.

    By ComfyUI's own estimate of a forward with positive and negative prompt.
    """
    patcher = guider.inner_model.current_patcher
    need = guider.inner_model.memory_required([2 * shape[0], *shape[1:]])
    device = patcher.load_device
    if comfy.model_management.is_device_cpu(device):
        room = CPU_MEMORY_SHARE * comfy.model_management.get_total_memory(device)
    else:
        room = MEMORY_SHARE * patcher.get_free_memory(device)
    return max(1, min(int(room / max(need, 1)), MOST_IMAGES // shape[0]))


def _batched(entry: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of a conditioning that is repeated to the batch."""
    for value in entry.get("model_conds", {}).values():
        if isinstance(value, comfy.conds.CONDConstant):
            continue
        inner = value.cond if isinstance(value.cond, (list, tuple)) else [value.cond]
        yield from (each for each in inner if isinstance(each, Tensor) and each.ndim)
    if isinstance(entry.get("mask"), Tensor):
        yield entry["mask"]


def _hints(control: Any) -> set[int]:
    """The numbers of images in all hints of a ControlNet."""
    hints = [getattr(control, "cond_hint_original", None)]
    hints += list(getattr(control, "extra_concat_orig", ()))
    return {len(hint) for hint in hints if isinstance(hint, Tensor)}
