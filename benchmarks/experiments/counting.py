"""What a method costs, in forward-equivalents of one image: nothing is free but the regularizer.

1 is one denoiser evaluation of one image, guidance included. A backward step of the sweep is a
recomputation and a backward. The prices are ratios of processor time measured on the demo model,
batch 8, 8 steps, one thread: 14.7 ms a denoiser evaluation, 35 ms a backward step, 7.0 ms a decode,
27 ms its gradient. The regularizer, the optimizer and the reward count in seconds only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from comfyui_dno.dno_core import Decoder, GradientMode, LateMap, ModalMap, Path
from comfyui_dno.dno_core.noise_map.sampler import kept_steps

FORWARD = 1.0
BACKWARD = 2.4
"""The recomputation of one denoiser evaluation, and the backward through it."""

DECODE = 0.5
DECODE_BACKWARD = 1.8


class Costs:
    """The bill of a run of `batch` images; `spent` is per image of the batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.spent = 0.0

    def charge(self, images: int, price: float) -> None:
        self.spent += images * price / self.batch


@dataclass(frozen=True)
class CountingMap:
    """A NoiseMap that charges every step of every image, probes included, and a backward only
    where the gradient mode takes one."""

    inner: Any
    costs: Costs

    def forward(self, z: Tensor) -> Path:
        known = self.inner.known(z) if isinstance(self.inner, LateMap) else ()
        run = len(self.inner.steps) - max(len(known) - 1, 0)
        self.costs.charge(z.shape[1] * run, FORWARD)
        return self.inner.forward(z)

    def forward_to_pull(self, z: Tensor) -> Path:
        """As `forward`: no graph is kept, so that every machine's backward has the same price."""
        return self.forward(z)

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        mode = self.inner.mode if isinstance(self.inner, ModalMap) else GradientMode()
        first = self.inner.begin + 1 if isinstance(self.inner, LateMap) else 0
        pulled = kept_steps(len(self.inner.steps), mode, len(self.inner.steps), first)
        self.costs.charge(z.shape[1] * len(pulled), BACKWARD)
        return self.inner.pull(z, path, v)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True)
class CountingDecoder:
    """A Decoder that charges every image."""

    inner: Decoder
    costs: Costs

    def decode(self, x: Tensor) -> Tensor:
        self.costs.charge(len(x), DECODE)
        return self.inner.decode(x)

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        self.costs.charge(len(x), DECODE_BACKWARD)
        return self.inner.pull(x, v)
