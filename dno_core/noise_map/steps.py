"""The sampler's steps: every stock step is x_{i+1} = a x_i + b D(x_i, sigma_i) + c z."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One sampling step, as the coefficients of its linear form.

    `sigma` is the 0-dim tensor that the denoiser is given; `noise` is the index in z of the noise
    that enters after the step (None where none does, then c is 0).
    """

    index: int
    sigma: Tensor
    a: float
    b: float
    c: float
    noise: int | None


def ddim_steps(sigmas: Tensor, eta: float) -> tuple[Step, ...]:
    """DDIM(eta) in sigma space (variance-exploding scale), x = x0 + sigma * eps.

        up   = min(s', eta sqrt(s'^2 (s^2 - s'^2) / s^2)),   down = sqrt(s'^2 - up^2)
        x'   = x + (x - D) / s (down - s) + up z             (s' = 0: x' = D)

    Equal to DDIM (Song et al. 2021, eq. 12 and 16) with s^2 = (1 - alpha_bar) / alpha_bar, to
    k-diffusion's Euler ancestral step at eta 1 and its Euler step at eta 0.

    sigmas: [T + 1], finite, falling, the last may be 0. eta: in [0, 1]. Raises ValueError
    otherwise.
    """

    def coefficients(sigma: float, following: float) -> tuple[float, float, float]:
        variance = following**2 * (sigma**2 - following**2) / sigma**2
        up = min(following, eta * math.sqrt(variance))
        down = math.sqrt(max(following**2 - up**2, 0.0))
        return down / sigma, 1.0 - down / sigma, up

    return _steps(sigmas, eta, coefficients)


def flow_steps(sigmas: Tensor, eta: float, noise_scale: float = 1.0) -> tuple[Step, ...]:
    """The stochastic Euler step of rectified flow, x = (1 - sigma) x0 + sigma eps.

    down = s' (1 + (s'/s - 1) eta) and the noise that brings (1 - s')/(1 - down) x back to level
    s': k-diffusion's ancestral step for flow models; eta 0 is plain Euler.

    sigmas: [T + 1] in [0, 1], falling. eta: in [0, 1]. Raises ValueError otherwise.
    """
    if len(sigmas) and float(sigmas.max()) > 1 + 1e-6:
        raise ValueError("A flow schedule starts at 1 or below. Use the sigmas of a flow model.")

    def coefficients(sigma: float, following: float) -> tuple[float, float, float]:
        if eta == 0:
            return following / sigma, 1.0 - following / sigma, 0.0
        down = following * (1 + (following / sigma - 1) * eta)
        shrink = (1 - following) / (1 - down)
        renoise = math.sqrt(max(following**2 - (down * shrink) ** 2, 0.0))
        ratio = down / sigma
        return shrink * ratio, shrink * (1 - ratio), renoise * noise_scale

    return _steps(sigmas, eta, coefficients)


def noise_count(steps: tuple[Step, ...]) -> int:
    """How many noises a run uses: the starting noise and one for every step that injects one."""
    return 1 + sum(step.noise is not None for step in steps)


def _steps(sigmas: Tensor, eta: float, coefficients) -> tuple[Step, ...]:  # type: ignore[no-untyped-def]
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}. Use a value from 0 (deterministic) to 1 (stochastic).")
    values = [float(s) for s in sigmas.cpu().double()]
    falling = all(a > b >= 0 for a, b in zip(values, values[1:], strict=False))
    if len(values) < 2 or not falling or math.isinf(values[0]):
        raise ValueError(
            "The sigmas do not fall from a finite value towards 0. Use a falling schedule."
        )
    steps: list[Step] = []
    used = 1
    for index, (sigma, following) in enumerate(zip(values, values[1:], strict=False)):
        injects = following > 0 and eta > 0
        a, b, c = (0.0, 1.0, 0.0) if following == 0 else coefficients(sigma, following)
        steps.append(Step(index, sigmas[index], a, b, c, used if injects else None))
        used += injects
    return tuple(steps)


def vp_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar) of a variance-preserving schedule."""
    return torch.sqrt((1 - alphas_cumprod) / alphas_cumprod)
