"""The noise-to-sample map M(z): a forward run that keeps its latents, and the backward sweep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .gradient_modes import GradientMode
from .saved import saved_tensors_kept
from .steps import Step, noise_count


class Denoiser(Protocol):
    """D(x, sigma): the denoised prediction x0 after guidance.

    `x` [B,C,H,W], `sigma` 0-dim, `z0` [B,C,H,W] the starting noise, which matters only where a
    noise mask mixes it in at every step.
    """

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Path:
    """One forward run: the latents x_0 .. x_{T-1} that the denoiser saw, and x_T."""

    latents: tuple[Tensor, ...]
    final: Tensor


class NoiseMap(Protocol):
    """M(z) up to the latent x_T, with its vector-Jacobian product."""

    def forward(self, z: Tensor) -> Path: ...

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplerMap:
    """The map built from a plain denoiser: for notebooks, diffusers models and tests."""

    denoise: Denoiser
    steps: tuple[Step, ...]
    start: Callable[[Tensor], Tensor]
    mode: GradientMode = GradientMode()

    def forward(self, z: Tensor) -> Path:
        return sample(self.denoise, self.steps, z, self.start)

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        exact_at = self.mode.exact_at(len(self.steps))
        return sweep(self.denoise, self.steps, path.latents, z[0], v, self.start, exact_at)

    def in_mode(self, mode: GradientMode) -> SamplerMap:
        return replace(self, mode=mode)


def vjp(function: Callable[..., Tensor], inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """Pull v back through `function`, recomputing it: J^T v for every input (zeros if unused, or
    if the function detaches its result).

    The recomputation and the backward both run where tensors saved for backward may be modified
    in place, as diffusion models do: a plain checkpoint would be silently wrong there.
    """
    leaves = [x.detach().requires_grad_(True) for x in inputs]
    with torch.enable_grad(), saved_tensors_kept():
        out = function(*leaves)
        if not out.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        pulled = torch.autograd.grad(out, leaves, v, allow_unused=True)
    return [
        torch.zeros_like(x) if g is None else g.detach()
        for g, x in zip(pulled, inputs, strict=True)
    ]


@torch.no_grad()
def sample(
    denoise: Denoiser,
    steps: tuple[Step, ...],
    z: Tensor,
    start: Callable[[Tensor], Tensor],
) -> Path:
    """Run the sampler on noise z [N,B,C,H,W], N = noise_count(steps); x_0 = start(z_0).

    Raises ValueError if z does not hold the N noises that the steps use.
    """
    if z.shape[0] != noise_count(steps):
        raise ValueError(
            f"The noise holds {z.shape[0]} tensors and the steps use {noise_count(steps)}. "
            "Draw it for this schedule."
        )
    x = start(z[0])
    latents = []
    for step in steps:
        latents.append(x)
        denoised = denoise(x, step.sigma, z[0])
        x = denoised if step.a == 0 and step.c == 0 else step.a * x + step.b * denoised
        if step.noise is not None:
            x = x + step.c * z[step.noise]
    return Path(tuple(latents), x)


def sweep(
    denoise: Denoiser,
    steps: tuple[Step, ...],
    latents: Sequence[Tensor],
    z0: Tensor,
    v: Tensor,
    start: Callable[[Tensor], Tensor],
    exact_at: Collection[int] | None = None,
    cut: bool = False,
    jacobian: Tensor | float = 1.0,
) -> Tensor:
    """Pull v = d objective / d x_T back to every noise; returns dz [N,B,C,H,W] in float32 or wider.

        dz_{i+1} = c_i v;   v <- a_i v + b_i J_i^T v;   dz_0 = start^T v

    One denoiser graph is alive at a time. `exact_at` limits the steps whose J^T v is computed
    (None: all); elsewhere eps is held constant, which makes J the identity: biased, but free.
    `jacobian` is what stands there for it, number by number: the square of a noise mask, which the
    denoiser applies to what it is given and to what it returns. With `cut` the sweep ends at the
    first of those steps that it meets: the noises before are left with no gradient, as if the
    latent there had been detached.
    """
    wide = torch.promote_types(z0.dtype, torch.float32)
    dz = torch.zeros((noise_count(steps), *z0.shape), dtype=wide, device=z0.device)
    v = v.to(wide)
    for step, x in zip(reversed(steps), reversed(latents), strict=True):
        if step.noise is not None:
            dz[step.noise] = step.c * v
        if exact_at is None or step.index in exact_at:
            jv, direct = vjp_unit(partial(_denoise_at, denoise, step.sigma), [x, z0], v)
            dz[0] += step.b * direct
        elif cut:
            return dz
        else:
            jv = jacobian * v
        v = step.a * v + step.b * jv
    dz[0] += vjp(start, [z0], v.to(z0.dtype))[0]
    return dz


def _denoise_at(denoise: Denoiser, sigma: Tensor, x: Tensor, z0: Tensor) -> Tensor:
    return denoise(x, sigma, z0)


def vjp_unit(function: Callable[..., Tensor], inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """`vjp` in which every image's v is brought to O(1) and back, so that half precision
    does not lose it (exact: J^T v is linear in v). Inputs and v have the batch first; the result
    is in v's dtype, or float32 if that is wider.
    """
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    scale = wide.flatten(1).abs().amax(1).clamp_min(torch.finfo(wide.dtype).tiny)
    unit = wide / _spread(scale, wide)

    def matching(*leaves: Tensor) -> Tensor:
        return function(*leaves).to(unit)

    return [g.to(wide.dtype) * _spread(scale, g).to(g.device) for g in vjp(matching, inputs, unit)]


def _spread(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1))
