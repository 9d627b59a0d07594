"""What a run will cost, said before it is spent."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from .graph_room import block_room, plain_room
from .memory import GraphMemory

MOMENTS = 8
"""Tensors of the noise's size alive at once: noise, gradient, regularizer, Adam's moments, best."""


def forecast_bytes(model: Any, vae: Any, z: Tensor, graphs: GraphMemory | None) -> int:
    """Memory a run takes beside the weights, in bytes, by estimates; kept graphs left out.

    The larger of one denoiser call (with its graph, unless `graphs` is None) and one decode, plus
    the noise [N,B,C,H,W] and what the optimizer keeps of its size, and the latents of one forward
    run.
    """
    shape = list(z.shape[1:])
    if graphs is None:
        call = model.model.memory_required([2 * shape[0], *shape[1:]])
    else:
        call = (block_room if graphs.by_blocks else plain_room)(model, shape)
    decode = vae.memory_used_decode([1, *shape[1:]], vae.vae_dtype)
    noise = z.numel() * 4
    return int(max(call, decode) + (MOMENTS + 1) * noise)


def forecast_line(
    model: Any, vae: Any, z: Tensor, iterations: int, calls: int, graphs: GraphMemory | None
) -> str:
    """The forecast of memory and work as a line for the node; `graphs`: None where no graph of
    the model is built."""
    need = forecast_bytes(model, vae, z, graphs) / 2**30
    free = comfy.model_management.get_free_memory(model.load_device) / 2**30
    line = (
        f"forecast: {iterations} iterations of {calls} steps; about {need:.1f} GB beside the "
        f"weights, {free:.1f} GB free"
    )
    if graphs is not None:
        line += f"; {graphs.line}"
    if need > free:
        line += "\nWARNING: that may not fit. Use a smaller image or batch."
    return line


def memory_use(device: torch.device) -> tuple[int, int]:
    """Bytes in use and bytes there are, of the device that the run is on."""
    management = comfy.model_management
    total = int(management.get_total_memory(device))
    return max(total - int(management.get_free_memory(device)), 0), total
