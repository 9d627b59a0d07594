"""Weights for networks of any shape, when it does not matter what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def drawn(shapes: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of these shapes (or of these tensors' shapes): N(0, 1 / fan-in), norms about 1."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        shape = torch.Size(getattr(shape, "shape", shape))
        fan_in = shape[1:].numel() if len(shape) > 1 else 1
        values = torch.empty(shape, dtype=dtype).normal_(generator=generator)
        state[name] = values.mul_(fan_in**-0.5 if len(shape) > 1 else 0.02)
        if name.endswith("weight") and len(shape) == 1:
            state[name] += 1
    return state


def without_weights(make: Callable[[], Any]) -> dict[str, Tensor]:
    """The state dict of a network that takes no memory."""
    with torch.device("meta"):
        return {
            name: tensor
            for name, tensor in make().state_dict().items()
            if tensor.is_floating_point()
        }
