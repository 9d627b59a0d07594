"""The published algorithm on the same full-size models, on the shortest way to their networks.

It is spared ComfyUI's guider: positive and negative prompt go straight into the network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .families import Family, conditioning
from .machine import GB, Machine
from .timing import CFG, SEED, request, wavy

DRY_PERMUTATIONS = 2
RUN_HALF = torch.float16
"""What the published scripts run in: torch.autocast in float16 with a loss scaler."""


def measure_published(
    steps: int,
    machine: Machine,
    parts: tuple[Family, Any, Any],
    seconds: float,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """Median seconds of an iteration after the first, and its memory; none begins after `seconds`.

    Where the first alone takes longer than that, it is the one that counts.
    """
    import comfy.model_management
    from published import PERMUTATIONS, Published

    from comfyui_dno.nodes.comfy_bridge.scope import free_weights, gradient_scope

    family, model, vae = parts
    sigmas = request(family, model, vae, None, steps).drawing.sigmas(1.0)
    machine.begin()
    with gradient_scope():
        patchers = [model, vae.patcher]
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
        free_weights(patchers)
        run = Published(
            denoiser(family, model, machine.device),
            list(sigmas.clone().to(machine.device)),
            1.0,
            decoder(model, vae),
            wavy,
            starting_noise(family, steps, machine.device),
            permutations=DRY_PERMUTATIONS if machine.dry else PERMUTATIONS,
            autocast=autocast,
        )
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) <= machine.iterations:
            start = time.perf_counter()
            run.iteration()
            machine.wait()
            taken.append(time.perf_counter() - start)
            if time.perf_counter() - began > seconds:
                break
    allocated, reserved = machine.peak()
    return {
        "seconds": statistics.median(taken[1:] or taken),
        "iterations": max(len(taken) - 1, 1),
        "peak_gb": allocated / GB,
        "reserved_gb": reserved / GB,
    }


def starting_noise(family: Family, steps: int, device: torch.device) -> Tensor:
    """[T,1,4,h,w]."""
    side = family.pixels // 8
    generator = torch.Generator(device).manual_seed(SEED)
    return torch.randn(steps, 1, 4, side, side, generator=generator, device=device)


def denoiser(
    family: Family, model: Any, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """D(x [1,4,h,w], sigma) after guidance, both prompts in one batch."""
    network = model.model
    prompts = [conditioning(family, seed)[0] for seed in (2, 1)]  # negative, positive
    texts = torch.cat([features for features, _ in prompts]).to(device)
    more = {}
    if family.pooled:
        size = {"width": family.pixels, "height": family.pixels}
        rows = [network.encode_adm(device=device, **options, **size) for _, options in prompts]
        more["y"] = torch.cat(rows).to(device)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        both = network.apply_model(
            torch.cat([x, x]), sigma.expand(2), c_crossattn=texts, transformer_options={}, **more
        )
        negative, positive = both.chunk(2)
        return negative + CFG * (positive - negative)

    return denoise


def decoder(model: Any, vae: Any) -> Callable[[Tensor], Tensor]:
    """x_T [1,4,h,w] -> image [1,3,H,W] in one piece, as the scripts decode."""
    from comfyui_dno.nodes.comfy_bridge.decoding import output_range

    offset, slope = output_range(vae)

    def decode(x: Tensor) -> Tensor:
        latent = model.model.process_latent_out(x).to(vae.vae_dtype)
        return vae.first_stage_model.decode(latent).float() * slope + offset

    return decode
