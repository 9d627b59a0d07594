"""How much memory the graph of one denoiser call will take, before the first one is built."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.supported_models
import comfy.utils

FAMILIES = (
    (comfy.supported_models.SDXL, 20),
    (comfy.supported_models.SD15, 10),
    (comfy.supported_models.SD3, 7),
    (comfy.supported_models.Flux, 27),
)
GRAPH_ROOM = 27
BLOCK_ROOM = 3
"""The graph of a denoiser call in units of ComfyUI's estimate of a plain one with fused attention:
by family, of any other network, and of a network recomputed block by block.

Counted by dno_core's ledger on full-size networks of ComfyUI's classes without memory (device
"meta"), float16, positive and negative prompt, and held to that by tests/bridge/test_graph_room.py:
SD1.5 9.0 at 512 pixels, SDXL 19.7 at 512 and 19.4 at 1024, SD3 medium 6.4 and 5.7, Flux 26.0 and
22.1; by blocks at most 1.8 for what is kept and 0.7 for the block at work.
"""


def plain_room(model: Any, shape: list[int]) -> int:
    """Bytes of one call's graph for latents [B,C,...], and of the weights that it copies."""
    return int(_family_room(model.model) * _fused(model, shape) + _matrices(model, shape)) + (
        copied_weights(model)
    )


def block_room(model: Any, shape: list[int]) -> int:
    """The same where the call is recomputed block by block: one block's weights are copied."""
    return int(BLOCK_ROOM * _fused(model, shape) + _matrices(model, shape))


def copied_weights(model: Any) -> int:
    """Bytes of the weights that a call brings to the device, or to another precision, one by one:
    a graph keeps each of these copies."""
    cast = model.model.manual_cast_dtype
    if cast is not None:
        size = comfy.model_management.dtype_size(cast)
        return size * comfy.utils.calculate_parameters(model.model.diffusion_model.state_dict())
    loaded = getattr(model, "loaded_size", None)
    if loaded is None or not getattr(model.model, "model_lowvram", False):
        return 0
    return max(int(model.model_size()) - int(loaded()), 0)


def _family_room(model: Any) -> int:
    config = model.model_config
    return next((room for family, room in FAMILIES if isinstance(config, family)), GRAPH_ROOM)


def _fused(model: Any, shape: list[int]) -> float:
    """ComfyUI's estimate of a call with two prompts, as it is where attention is fused."""
    positions = 2 * shape[0]
    for extent in shape[2:]:
        positions *= extent
    size = comfy.model_management.dtype_size(model.model.get_dtype_inference())
    return positions * size * 0.01 * model.model.memory_usage_factor * 2**20


def _matrices(model: Any, shape: list[int]) -> float:
    """What ComfyUI adds to that for attention matrices where it is not."""
    required = model.model.memory_required([2 * shape[0], *shape[1:]])
    return max(required - _fused(model, shape), 0.0)
