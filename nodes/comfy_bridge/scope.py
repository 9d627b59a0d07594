"""A place in which gradients are right: ComfyUI's modes switched, its tensors made normal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def gradient_scope() -> Iterator[None]:
    """Leave inference mode and tell ComfyUI's models that gradients are wanted.

    ComfyUI runs every prompt under `torch.inference_mode()`; some models (Flux among them) use
    kernels without a backward unless `in_training` is set. Everything is restored on the way out.
    """
    management = comfy.model_management
    flags = {"in_training": True, "training_fp8_bwd": False}
    before = {name: getattr(management, name) for name in flags if hasattr(management, name)}
    with torch.inference_mode(False), torch.no_grad():
        try:
            for name in before:
                setattr(management, name, flags[name])
            yield
        finally:
            for name, value in before.items():
                setattr(management, name, value)


def free_weights(patchers: Iterable[Any]) -> None:
    """Give every inference parameter and buffer of the models a normal tensor, storage shared.

    Autograd cannot save inference tensors, and weights loaded while a prompt runs are such. No
    number is copied or changed. To be called whenever models may have been loaded or moved.
    """
    for patcher in patchers:
        if patcher.is_dynamic():
            continue
        for module in patcher.model.modules():
            _free_tensors(module)


def _free_tensors(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_inference():
            module._parameters[name] = _normal_parameter(parameter)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_inference():
            module._buffers[name] = normal(buffer)
    for name, value in vars(module).items():
        if type(value) is Tensor and value.is_inference():
            setattr(module, name, normal(value))


def _normal_parameter(parameter: Any) -> Any:
    if _is_plain(parameter) or hasattr(parameter, "__tensor_flatten__"):
        return nn.Parameter(normal(parameter.data), requires_grad=False)
    return normal(parameter)


def normal(tensor: Tensor) -> Tensor:
    """A normal tensor over the storage of an inference tensor; itself if it is normal already.

    A wrapper subclass (quantized weights) is taken apart and put together again: pointing its
    outer shell at a storage would crash. Any other subclass (GGUF weights: bytes with a type and
    a shape beside them) keeps its class and its attributes, a parameter its being one.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        return _normal_wrapper(tensor)
    if not tensor.is_inference():
        return tensor
    if _is_plain(tensor):
        return _over_storage(tensor)
    with torch._C.DisableTorchFunctionSubclass():
        twin = _over_storage(tensor.as_subclass(Tensor)).as_subclass(type(tensor))
    vars(twin).update(vars(tensor))
    return twin


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor or type(tensor) is nn.Parameter


def _over_storage(tensor: Tensor) -> Tensor:
    out = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return out.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _normal_wrapper(tensor: Any) -> Any:
    names, context = tensor.__tensor_flatten__()
    inner = {name: normal(getattr(tensor, name)) for name in names}
    if not tensor.is_inference() and all(inner[name] is getattr(tensor, name) for name in names):
        return tensor
    kind: Any = type(tensor)
    return kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())


def normal_copies(value: Any) -> Any:
    """A copy of conditioning, latents or options whose inference tensors are normal ones.

    Walks dicts, lists, tuples and ComfyUI's COND objects; everything else is passed on as it is.
    Where nothing needs changing, the very same object comes back.
    """
    if isinstance(value, Tensor):
        return normal(value)
    if isinstance(value, dict):
        copied = {key: normal_copies(item) for key, item in value.items()}
        return copied if _changed(copied.values(), value.values()) else value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        items = [normal_copies(item) for item in value]
        return type(value)(items) if _changed(items, value) else value
    if type(value).__module__ == "comfy.conds":
        inner = normal_copies(value.cond)
        if inner is value.cond:
            return value
        clone = copy.copy(value)
        clone.cond = inner
        return clone
    return value


class NormalInputs(TorchFunctionMode):
    """In here every torch function is given normal tensors, whatever it is called with.

    For what lies out of reach: tensors that model patches and rewards keep in their closures.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") == "__set__":
            return function(*args, **(kwargs or {}))
        return function(*normal_copies(args), **normal_copies(kwargs or {}))


def _changed(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return any(a is not b for a, b in zip(new, old, strict=True))


def free_control_hints(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Make what ControlNets cached in their first call normal (their hint, their masks)."""
    for control in controls_of(conds):
        for name in ("cond_hint", "extra_concat"):
            value = getattr(control, name, None)
            if value is not None:
                setattr(control, name, normal_copies(value))


def controls_of(conds: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Every ControlNet that hangs on the conditioning, chained ones included."""
    found: list[Any] = []
    for entries in conds.values():
        for entry in entries:
            control = entry.get("control")
            while control is not None:
                if all(control is not other for other in found):
                    found.append(control)
                control = control.previous_controlnet
    return found
