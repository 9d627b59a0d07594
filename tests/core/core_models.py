"""Small denoisers, decoders and rewards with a non-trivial gradient, for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comfyui_dno.dno_core import (
    FunctionDecoder,
    Problem,
    SamplerMap,
    Settings,
    Term,
    ddim_steps,
    noise_count,
)

SIGMAS = torch.tensor([4.0, 2.2, 1.1, 0.5, 0.2, 0.0], dtype=torch.float64)
CHANNELS, SIDE = 2, 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


@dataclass(frozen=True)
class ConvDenoiser:
    """D(x, sigma) = x - sigma (u + cfg (p - u)), p and u two conditionings of one conv net."""

    first: Tensor
    last: Tensor
    conditions: Tensor
    cfg: float = 3.0
    half: torch.dtype | None = None

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        s = sigma.to(x)
        inner = (x / torch.sqrt(1 + s**2)).to(self.half or x.dtype)
        positive, negative = (self.eps(inner, s, c) for c in self.conditions)
        return x - s * (negative + self.cfg * (positive - negative)).to(x.dtype)

    def eps(self, inner: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        shift = (condition * torch.log(s + 0.1)).view(1, -1, 1, 1).to(inner.dtype)
        hidden = torch.tanh(F.conv2d(inner, self.first.to(inner.dtype), padding=1) + shift)
        return F.conv2d(hidden * hidden.roll(1, 1) + hidden, self.last.to(inner.dtype), padding=1)


def conv_denoiser(
    dtype: torch.dtype = torch.float64,
    cfg: float = 3.0,
    half: torch.dtype | None = None,
    gain: float = 1.0,
) -> ConvDenoiser:
    return ConvDenoiser(
        randn(6, CHANNELS, 3, 3, seed=1, dtype=dtype) * (0.3 * gain),
        randn(CHANNELS, 6, 3, 3, seed=2, dtype=dtype) * (0.2 * gain),
        randn(2, 6, seed=3, dtype=dtype) * 0.3,
        cfg,
        half,
    )


def mild_denoiser(half: torch.dtype | None = None) -> ConvDenoiser:
    """One as smooth as trained networks are: the other one is wildly curved."""
    return conv_denoiser(torch.float32, cfg=2.0, half=half, gain=0.5)


@dataclass(frozen=True)
class MaskedDenoiser:
    """Inpainting: outside the mask the latent is held, re-noised with z_0 before every call."""

    inner: Any
    mask: Tensor
    latent: Tensor

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        known = self.latent + sigma.to(x) * z0
        denoised = self.inner(x * self.mask + known * (1 - self.mask), sigma, z0)
        return denoised * self.mask + self.latent * (1 - self.mask)


def in_place_denoiser(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    """A denoiser that overwrites tensors which its own backward still needs."""
    hidden = torch.tanh(x / (1 + sigma.to(x)))
    gate = torch.sigmoid(hidden.roll(1, -1))
    out = hidden * gate
    gate.mul_(0.25)
    hidden.add_(gate)
    return out + hidden.sin() * gate


def without_overwriting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    """What `in_place_denoiser` computes, written out of place."""
    hidden = torch.tanh(x / (1 + sigma.to(x)))
    gate = torch.sigmoid(hidden.roll(1, -1))
    out = hidden * gate
    small = gate * 0.25
    return out + (hidden + small).sin() * small


def start_scaled(sigmas: Tensor = SIGMAS) -> Callable[[Tensor], Tensor]:
    factor = float(torch.sqrt(1 + sigmas[0] ** 2))
    return lambda z0: z0 * factor


def decode_smoothly(x: Tensor) -> Tensor:
    """Latent [B,2,h,w] -> image [B,3,2h,2w] well inside [0,1]: saturation is tested elsewhere."""
    mixed = torch.stack([x[:, 0], x[:, 1], x[:, 0] * 0.5 - x[:, 1]], 1)
    return 0.5 + 0.3 * torch.tanh(0.3 * F.interpolate(mixed, scale_factor=2))


@dataclass(frozen=True)
class FakeReward:
    """A reward from a plain function of the image."""

    function: Callable[[Tensor], Tensor]
    name: str = "fake"
    unit: str = "units"
    scale: float = 1.0
    differentiable: bool = True
    modules: tuple[torch.nn.Module, ...] = ()

    def score(self, images: Tensor, context: Any) -> Tensor:
        return self.function(images)


def red(images: Tensor) -> Tensor:
    return images[:, 0].flatten(1).mean(1)


def wave(images: Tensor) -> Tensor:
    ramp = torch.linspace(0, 3, images[0].numel(), dtype=images.dtype).view(images.shape[1:])
    return (torch.sin(ramp + images) * images).flatten(1).sum(1)


def small_problem(
    *,
    denoise: Any = None,
    eta: float = 1.0,
    terms: tuple[Term, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    decode: Callable[[Tensor], Tensor] = decode_smoothly,
) -> Problem:
    steps = ddim_steps(SIGMAS, eta)
    return Problem(
        SamplerMap(denoise or conv_denoiser(dtype), steps, start_scaled()),
        FunctionDecoder(decode),
        terms or (Term(FakeReward(wave, scale=2.0)),),
    )


def small_noise(
    batch: int = 2,
    eta: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    side: int = SIDE,
) -> Tensor:
    return randn(
        noise_count(ddim_steps(SIGMAS, eta)), batch, CHANNELS, side, side, seed=seed, dtype=dtype
    )


def steady(learning_rate: float = 0.05, gamma: float = 0.0, clip: float = 1.0, weights=(1.0,)):  # type: ignore[no-untyped-def]
    settings = Settings(learning_rate, gamma, tuple(weights), clip)
    return lambda index: settings


def numeric_gradient(function: Callable[[Tensor], Tensor], z: Tensor, h: float = 1e-4) -> Tensor:
    """Central differences (fourth order) of function(z) [B] for every number of z [N,B,...].

    The images of the batch are independent problems, so each is moved at the same time.
    """
    found = torch.zeros_like(z)
    per_image = z.movedim(1, 0).flatten(1)
    out = found.movedim(1, 0).flatten(1)
    shape = (z.shape[1], z.shape[0], *z.shape[2:])
    for i in range(per_image.shape[1]):

        def at(delta: float, i: int = i) -> Tensor:
            moved = per_image.clone()
            moved[:, i] += delta
            return function(moved.view(shape).movedim(0, 1))

        out[:, i] = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    return out.view(shape).movedim(0, 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
