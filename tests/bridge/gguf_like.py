"""GGUF as custom nodes do it: a tensor subclass of packed bytes, unpacked in every layer's forward.

Only the mechanism is theirs: weights are a subclass whose shape and kind stand beside its bytes,
whose `detach` and `clone` give itself, and which layers of their own operations turn into a plain
weight, LoRA and all, for one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 32
"""Numbers that share a scale: 2 bytes of float16 before 32 bytes of int8, as in Q8_0."""


class Packed(torch.Tensor):
    """`kind` is "blocks", or None for plain floats; `packed_shape` is that of the weight."""

    @staticmethod
    def __new__(cls, data: Tensor, kind: str | None, packed_shape: torch.Size) -> Any:
        return super().__new__(cls, data)

    def __init__(self, data: Tensor, kind: str | None, packed_shape: torch.Size) -> None:
        super().__init__()
        self.kind, self.packed_shape = kind, packed_shape
        self.patches: list[Any] = []

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = super().to(*args, **kwargs)
        for name in ("kind", "packed_shape", "patches"):
            setattr(moved, name, getattr(self, name, None))
        return moved

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def detach(self) -> Any:
        return self

    @property
    def shape(self) -> Any:
        return getattr(self, "packed_shape", None) or self.size()


def pack(name: str, weight: Tensor) -> Packed:
    """A layer's matrix in blocks where it divides into them, all else as the floats it is."""
    if weight.ndim < 2 or weight.numel() % BLOCK or not name.endswith("weight"):
        return Packed(weight.clone(), None, weight.shape)
    blocks = weight.reshape(-1, BLOCK).float()
    scale = (blocks.abs().amax(1, keepdim=True) / 127).to(torch.float16)
    whole = torch.round(blocks / scale.float().clamp_min(1e-12)).clamp(-127, 127).to(torch.int8)
    data = torch.cat([scale.view(torch.uint8), whole.view(torch.uint8)], 1)
    return Packed(data, "blocks", weight.shape)


def unpacked(tensor: Any, dtype: torch.dtype) -> Tensor:
    """The weight that a Packed stands for, as a plain tensor."""
    if getattr(tensor, "kind", None) is None:
        weight = tensor.to(dtype)
    else:
        scale, whole = torch.split(tensor.data, [2, BLOCK], dim=1)
        weight = scale.contiguous().view(torch.float16).to(dtype) * whole.view(torch.int8)
        weight = weight.reshape(tensor.packed_shape)
    return torch.Tensor(weight) if isinstance(weight, Packed) else weight


def operations() -> Any:
    """ComfyUI operations whose linear layers and convolutions unpack their weights."""
    import comfy.lora
    import comfy.ops

    class Unpacking(nn.Module):
        comfy_cast_weights = True
        weight: Any
        bias: Any

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            for name in ("weight", "bias"):
                if f"{prefix}{name}" in state:
                    setattr(self, name, nn.Parameter(state[f"{prefix}{name}"], requires_grad=False))

        def unpack(self, name: str, x: Tensor) -> Tensor | None:
            packed = getattr(self, name)
            if packed is None:
                return None
            weight = unpacked(packed, x.dtype)
            for patches, key in getattr(packed, "patches", None) or ():
                weight = comfy.lora.calculate_weight(patches, weight.clone(), key)
            return weight

    class Operations(comfy.ops.manual_cast):  # type: ignore[name-defined]
        class Linear(Unpacking, comfy.ops.manual_cast.Linear):  # type: ignore[name-defined]
            def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
                weight = self.unpack("weight", x)
                return nn.functional.linear(x, weight, self.unpack("bias", x))

        class Conv2d(Unpacking, comfy.ops.manual_cast.Conv2d):  # type: ignore[name-defined]
            def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
                return self._conv_forward(x, self.unpack("weight", x), self.unpack("bias", x))

    return Operations


def patcher_class() -> type:
    """A ModelPatcher that hangs a LoRA on the packed weight instead of writing into it."""
    import comfy.model_patcher
    import comfy.utils

    class PackedPatcher(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(
            self, key: str, device_to: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if key not in self.patches:
                return
            weight = comfy.utils.get_attr(self.model, key)
            if getattr(weight, "kind", None) is None:
                super().patch_weight_to_device(key, device_to, *args, **kwargs)
            else:
                weight.patches = [(self.patches[key], key)]

        def load(self, *args: Any, **kwargs: Any) -> Any:
            return super().load(*args, **{**kwargs, "force_patch_weights": True})

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
            for parameter in self.model.parameters() if unpatch_weights else ():
                if getattr(parameter, "patches", None):
                    parameter.patches = []
            return super().unpatch_model(device_to, unpatch_weights)

    return PackedPatcher
