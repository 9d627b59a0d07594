"""Drive a diffusers UNet and VAE with the core: for notebooks, and for parity.

Nothing here imports diffusers; it takes its objects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import FunctionDecoder
from .gradient_modes import EXACT, GradientMode
from .sampler import Denoiser, SamplerMap
from .steps import ddim_steps, vp_sigmas


def ddim_sigmas(scheduler: Any, steps: int) -> tuple[Tensor, Tensor]:
    """The sigmas [T+1], ending at 0, and the timesteps [T] that a DDIMScheduler samples at.

    Ending at 0 is the scheduler's `set_alpha_to_one=True`. float64, for exact coefficients.
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.cpu()
    sigmas = vp_sigmas(scheduler.alphas_cumprod.double()[timesteps])
    return torch.cat([sigmas, sigmas.new_zeros(1)]), timesteps


def unet_denoiser(
    unet: Any,
    sigmas: Tensor,
    timesteps: Tensor,
    prompt: Tensor,
    negative: Tensor,
    cfg: float,
    prediction: str = "epsilon",
) -> Denoiser:
    """D(x, sigma) of a UNet2DConditionModel in sigma space, with classifier-free guidance.

        eps:  D = x - sigma eps(x / sqrt(1 + sigma^2), t)
        v:    D = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v(x / sqrt(1 + sigma^2), t)

    prompt, negative: text embeddings [1 or B, L, D]. cfg: guidance scale; at 1 the negative is
    not evaluated. prediction: "epsilon" or "v_prediction". Raises ValueError otherwise. The UNet
    runs in its own dtype, all else in x's.
    """
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"The prediction type '{prediction}' is unknown. Use epsilon or v.")

    def timestep(sigma: Tensor) -> Tensor:
        return timesteps[(sigmas[:-1] - sigma.cpu()).abs().argmin()]

    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        time = timestep(sigma).to(x.device)
        sigma = sigma.to(x)
        inner = x / torch.sqrt(1 + sigma**2)
        count = x.shape[0]
        texts = [prompt] if cfg == 1 else [prompt, negative]
        doubled = torch.cat([inner] * len(texts)).to(unet.dtype)
        text = torch.cat([t.expand(count, -1, -1) for t in texts]).to(doubled)
        out = unet(doubled, time, encoder_hidden_states=text).sample.to(x.dtype)
        if cfg != 1:
            positive, unconditional = out.chunk(2)
            out = unconditional + cfg * (positive - unconditional)
        if prediction == "epsilon":
            return x - sigma * out
        return x / (1 + sigma**2) - sigma / torch.sqrt(1 + sigma**2) * out

    return denoise


def vae_decoder(vae: Any) -> FunctionDecoder:
    """Latent in the sampler's scale -> image, nominally in [0, 1], of an AutoencoderKL."""
    scaling = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0

    def decode(x: Tensor) -> Tensor:
        return vae.decode((x / scaling + shift).to(vae.dtype)).sample / 2 + 0.5

    return FunctionDecoder(decode)


def diffusers_map(
    unet: Any,
    scheduler: Any,
    steps: int,
    prompt: Tensor,
    negative: Tensor,
    *,
    cfg: float = 5.0,
    eta: float = 1.0,
    mode: GradientMode = EXACT,
) -> SamplerMap:
    """M(z) of a diffusers UNet under its DDIMScheduler's betas and prediction type.

    x_0 = sqrt(1 + sigma_0^2) z_0, which is z_0 in the variance-preserving scale of diffusers.
    """
    sigmas, timesteps = ddim_sigmas(scheduler, steps)
    denoise = unet_denoiser(
        unet, sigmas, timesteps, prompt, negative, cfg, scheduler.config.prediction_type
    )
    factor = float(torch.sqrt(1 + sigmas[0] ** 2))
    return SamplerMap(denoise, ddim_steps(sigmas, eta), lambda z0: z0 * factor, mode)
