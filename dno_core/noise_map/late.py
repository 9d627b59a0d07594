"""The end of a run by itself: the last noises move, and only the steps that they enter are run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .gradient_modes import GradientMode
from .sampler import Path
from .steps import Step


class ResumableMap(Protocol):
    """A NoiseMap whose run can go on from a latent on its way, and be pulled back to there.

    `latents`: x_0 .. x_m of a run whose first noises, those that x_m is made of, were the same;
    () for a run from the start. `begin`: m, the step before which nothing is pulled back.
    """

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def forward(self, z: Tensor, latents: tuple[Tensor, ...] = ()) -> Path: ...

    def forward_to_pull(
        self, z: Tensor, latents: tuple[Tensor, ...] = (), begin: int = 0
    ) -> Path: ...

    def pull(self, z: Tensor, path: Path, v: Tensor, begin: int = 0) -> Tensor: ...

    @property
    def mode(self) -> GradientMode: ...

    def in_mode(self, mode: GradientMode) -> ResumableMap: ...


@dataclass
class LateMap:
    """M(z) as a function of the noises that enter after step `begin` - 1: a NoiseMap.

    Its result is that of the inner map for every z. While the first noises stay as they were in
    the call before, it goes on from the latent x_begin that they made: (T - begin) / T of a run.
    Their gradient is 0; that of the others is the inner map's own, in its gradient mode.
    """

    inner: ResumableMap
    begin: int
    _early: Tensor | None = field(default=None, repr=False)
    _latents: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.inner.steps

    @property
    def held(self) -> int:
        """How many of the noises [N,...] come before: to be left as they are."""
        return held_noises(self.steps, self.begin)

    def forward(self, z: Tensor) -> Path:
        return self._noted(z, self.inner.forward(z, self.known(z)))

    def forward_to_pull(self, z: Tensor) -> Path:
        return self._noted(z, self.inner.forward_to_pull(z, self.known(z), self.begin))

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        return self.inner.pull(z, path, v, self.begin)

    def known(self, z: Tensor) -> tuple[Tensor, ...]:
        """x_0 .. x_begin of noise z, if the last call has made them."""
        early, before = z[: self.held], self._early
        if before is None or before.shape != early.shape or not torch.equal(before, early):
            return ()
        return self._latents

    @property
    def mode(self) -> GradientMode:
        return self.inner.mode

    def in_mode(self, mode: GradientMode) -> LateMap:
        return replace(self, inner=self.inner.in_mode(mode))

    def _noted(self, z: Tensor, path: Path) -> Path:
        self._early = z[: self.held].clone()
        self._latents = path.latents[: self.begin + 1]
        return path


def late_begin(steps: int) -> int:
    """Where the late steps of a run begin: after three fifths of them."""
    return steps * 3 // 5


def held_noises(steps: tuple[Step, ...], begin: int) -> int:
    """How many noises x_begin is made of: the starting noise and those of the steps before."""
    return 1 + sum(step.noise is not None for step in steps[:begin])
