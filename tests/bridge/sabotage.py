"""Models that go wrong at a chosen call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS = 3
"""Denoiser calls of one pass of the runs here: they take 3 steps."""


class Calls:
    """Wraps the MODEL; `act(output)` changes what comes out of call number `at` (from 0), and of
    all that follow if it goes `on`."""

    def __init__(
        self,
        model: Any,
        at: int | None = None,
        act: Callable[[Tensor], Tensor] = ...,  # type: ignore[assignment]
        on: bool = False,
    ):
        self.count = 0
        self.at = at
        self.on = on
        self.act = act
        self.model = model.clone()
        self.model.set_model_unet_function_wrapper(self)

    def __call__(self, apply_model: Any, given: dict[str, Any]) -> Tensor:
        index = self.count
        self.count += 1
        out = apply_model(given["input"], given["timestep"], **given["c"])
        meant = self.at is None or index == self.at or (self.on and index > self.at >= 0)
        return self.act(out) if meant else out


def nan(out: Tensor) -> Tensor:
    return out * float("nan")


def out_of_memory(out: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def driver_out_of_memory(out: Tensor) -> Tensor:
    """As some drivers report it: no OutOfMemoryError."""
    raise torch.AcceleratorError("CUDA error: out of memory")


def interrupt(out: Tensor) -> Tensor:
    """What the Cancel button does, while a call is under way."""
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)
    return out


class ScaledGradient(torch.autograd.Function):
    """The identity forward; backward the gradient is 15 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 1.15 * gradient
