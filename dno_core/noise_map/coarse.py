"""Coarse schedules: the same noise, sampled in fewer steps.

The noises of the SDE are increments of a Brownian motion, so those of a few long steps are sums of
those of many short ones. What is found with few steps is thereby noise of the full schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..estimators.probes import WideMap
from .gradient_modes import EXACT, GradientMode, ModalMap
from .graph import forward_to_pull
from .sampler import NoiseMap, Path
from .steps import Step, noise_count


def coarse_indices(steps: int, count: int) -> tuple[int, ...]:
    """The `count` + 1 places among 0 .. steps that are kept: evenly spaced, rounded, with both
    ends. Raises ValueError unless 1 <= count <= steps."""
    if not 1 <= count <= steps:
        raise ValueError(
            f"{count} steps cannot be chosen from a schedule of {steps}. Use 1 to {steps}."
        )
    return tuple((2 * index * steps + count) // (2 * count) for index in range(count + 1))


def coarse_sigmas(sigmas: Tensor, count: int) -> Tensor:
    """`count` + 1 of the sigmas [T+1], the first and the last among them; strictly falling where
    those are. All of them from T steps on. Raises ValueError for less than one step."""
    steps = len(sigmas) - 1
    return sigmas if count >= steps else sigmas[list(coarse_indices(steps, count))]


class Blend(NamedTuple):
    """One coarse noise: sum of weights[j] * z[first + j], weights of unit norm."""

    first: int
    weights: tuple[float, ...]


class Coarsening:
    """The noises [N_c,B,...] of coarse steps from those [N_f,B,...] of the fine ones, and back.

    A coarse noise is what the fine ones inside its interval add up to, at unit variance:

        z^c = sum_j w_j z_j / ||w||,   w_j = c_j prod_{l > j} a_l   over the interval's fine steps

    With a constant D, DDIM at eta 1 then gives the same latents; so does the ODE, which has z_0
    alone. In between, and in flow models, the variances are still right and the latents near
    (correlation 0.94 and more from 20 steps to 5). z_0 is shared. Fine noises of an interval that
    ends without noise, as the last one does at sigma 0, have no part.
    """

    def __init__(self, fine_steps: tuple[Step, ...], coarse_steps: tuple[Step, ...]) -> None:
        """Both of one sampler and eta, to the same end. Raises ValueError where a coarse step does
        not begin where a fine one does, or takes noise where the fine ones have none."""
        self.coarse_steps = coarse_steps
        self.fine_count = noise_count(fine_steps)
        places = {float(step.sigma): step.index for step in fine_steps}
        begins = [places.get(float(step.sigma)) for step in coarse_steps]
        known = [place for place in begins if place is not None]
        if len(known) < len(begins) or known[0] != 0 or known != sorted(set(known)):
            raise ValueError("The coarse steps do not begin where fine ones do. Use a subset.")
        self.blends = [Blend(0, (1.0,))]
        for step, begin, end in zip(
            coarse_steps, known, [*known[1:], len(fine_steps)], strict=True
        ):
            blend = _blend(fine_steps[begin:end])
            if step.noise is None:
                continue
            if blend is None:
                raise ValueError(
                    "A coarse step takes noise where the fine ones have none. Use one eta and one "
                    "last sigma for both."
                )
            self.blends.append(blend)

    def coarse(self, z: Tensor) -> Tensor:
        """Fine noise [N_f,B,...] to coarse noise [N_c,B,...]; Gaussian where z is.

        Raises ValueError for noise of another schedule.
        """
        if z.shape[0] != self.fine_count:
            raise ValueError(
                f"The noise holds {z.shape[0]} tensors and the full schedule uses "
                f"{self.fine_count}. Draw it for that schedule."
            )
        sums = []
        for first, weights in self.blends:
            total = weights[0] * z[first]
            for offset, weight in enumerate(weights[1:], 1):
                total = total + weight * z[first + offset]
            sums.append(total)
        return torch.stack(sums)

    def fine(self, dz: Tensor) -> Tensor:
        """The transpose: a gradient [N_c,B,...] in the coarse noises to one in the fine ones."""
        out = dz.new_zeros((self.fine_count, *dz.shape[1:]))
        for (first, weights), row in zip(self.blends, dz, strict=True):
            for offset, weight in enumerate(weights):
                out[first + offset] = weight * row
        return out


def _blend(steps: tuple[Step, ...]) -> Blend | None:
    """What the noises of these steps add up to after the last of them; None for nothing."""
    noises = [step.noise for step in steps if step.noise is not None]
    weights, decay = [], 1.0
    for step in reversed(steps):
        if step.noise is not None:
            weights.append(step.c * decay)
        decay *= step.a
    norm = math.hypot(*weights)
    if norm == 0:
        return None
    return Blend(noises[0], tuple(weight / norm for weight in reversed(weights)))


@dataclass(frozen=True)
class CoarseMap:
    """M(z) of the full schedule's noise, sampled in the inner map's fewer steps.

    It takes and gives back noise and gradients of the full schedule. A NoiseMap, and with the
    inner map's own room, modes and kept graphs a WideMap, a ModalMap and a KeepingMap.
    """

    inner: NoiseMap
    coarsening: Coarsening

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.coarsening.coarse_steps

    def forward(self, z: Tensor) -> Path:
        return self.inner.forward(self.coarsening.coarse(z))

    def forward_to_pull(self, z: Tensor) -> Path:
        return forward_to_pull(self.inner, self.coarsening.coarse(z))

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        return self.coarsening.fine(self.inner.pull(self.coarsening.coarse(z), path, v))

    def probe_room(self, z: Tensor, wanted: int) -> int:
        if isinstance(self.inner, WideMap):
            return self.inner.probe_room(self.coarsening.coarse(z), wanted)
        return max(wanted, 1)

    @property
    def mode(self) -> GradientMode:
        return self.inner.mode if isinstance(self.inner, ModalMap) else EXACT

    def in_mode(self, mode: GradientMode) -> CoarseMap:
        """Raises TypeError where the inner map knows no modes."""
        if not isinstance(self.inner, ModalMap):
            raise TypeError(f"{type(self.inner).__name__} knows no gradient modes: it is exact.")
        return replace(self, inner=self.inner.in_mode(mode))
