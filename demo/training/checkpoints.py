"""Atomic checkpoints and the schedule of the learning rate, shared by the training scripts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

RUNS = Path(__file__).with_name("runs")
"""Where the training scripts keep their checkpoints, unless told otherwise."""


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: Any = None) -> None:
    """Write a safetensors file so that a reader sees the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, metadata)
    os.replace(part, path)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a torch checkpoint of tensors and numbers, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None if there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None


def half(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """A module's weights in float16, named with a prefix."""
    return {prefix + k: v.to(torch.float16) for k, v in module.state_dict().items()}


def rate(step: int, base: float, warmup: int, cooldown: int, steps: int) -> float:
    """Linear warm-up, constant, then linear fall to 0 over the last `cooldown` steps."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    return base * rise * min(1.0, (steps - step) / max(cooldown, 1))


class Stop:
    """True once the process was asked to end; the loop then saves and leaves."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)

    def ask(self, *_: Any) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


class Average:
    """Exponential moving average of modules' weights, with a warm-up of its decay."""

    def __init__(self, modules: list[nn.Module], decay: float):
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and mean weights; call it again to undo."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)


__all__ = [
    "RUNS",
    "Average",
    "Stop",
    "half",
    "load_file",
    "load_state",
    "rate",
    "save_state",
    "save_tensors",
]
