"""The tiny VAE (TAESD) of a model family, as ComfyUI finds and loads it for its previews."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_patcher
import comfy.sd
import folder_paths
import torch
from comfy.taesd.taesd import TAESD
from safetensors import SafetensorError
from torch import nn

FOLDER = "vae_approx"
SOURCE = "github.com/madebyollin/taesd"
WAY_OUT = "set loop_decoder of DNO Sampler to full VAE"

FAMILIES = {
    "taesd_decoder": "SD15",
    "taesdxl_decoder": "SDXL",
    "taesd3_decoder": "SD3",
    "taef1_decoder": "Flux",
    "taef2_decoder": "Flux2",
}
"""Decoders by the name of their file, and the latent format that each was trained on."""

NUMBERS_A_CELL = 6 * 64 * 8 * 8
"""Alive at once for a cell of the latent: some six maps of 64 channels, 8 x 8 pixels each."""


def tiny_vae(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A VAE that decodes the MODEL's latents with the small decoder of its family.

    `dtype`: None for the one that ComfyUI takes for a VAE. It cannot encode. Its patcher is a
    classic one: 5 MB of weights are not worth streaming. Raises ValueError, saying what to do,
    where the family has no such decoder or its file is not there or is none.
    """
    latent_format = model.get_model_object("latent_format")
    name = str(latent_format.taesd_decoder_name or "")
    if name not in FAMILIES:
        raise ValueError(
            f"There is no tiny VAE for the latents of this model ({type(latent_format).__name__}). "
            "Set loop_decoder of DNO Sampler to full VAE."
        )
    family = getattr(comfy.latent_formats, FAMILIES[name])()
    path = decoder_file(name)
    network = _loaded(path, latent_format.latent_channels)
    network.vae_scale.fill_(float(family.scale_factor))
    network.vae_shift.fill_(float(getattr(family, "shift_factor", 0.0)))
    vae = comfy.sd.VAE(
        sd=network.state_dict(),
        dtype=dtype,
        metadata={"tae_latent_channels": latent_format.latent_channels},
    )
    decoder = vae.first_stage_model.to(vae.vae_dtype).requires_grad_(False)
    decoder.taesd_encoder = nn.Identity()
    vae.patcher = comfy.model_patcher.ModelPatcher(
        decoder, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    vae.memory_used_decode = _memory_used_decode
    return vae


def decoder_file(name: str) -> Path:
    """The decoder's file, a safetensors one first. Raises ValueError where there is none."""
    found = [each for each in folder_paths.get_filename_list(FOLDER) if each.startswith(f"{name}.")]
    found.sort(key=lambda each: not each.endswith(".safetensors"))
    path = folder_paths.get_full_path(FOLDER, found[0]) if found else None
    if path is None:
        folder = folder_paths.get_folder_paths(FOLDER)[0]
        raise ValueError(
            f"The tiny VAE of this model is missing: {name}.safetensors (or .pth) in {folder}. "
            f"Get it from {SOURCE}, or {WAY_OUT}."
        )
    return Path(path)


def _loaded(path: Path, channels: int) -> Any:
    try:
        with torch.no_grad():
            return TAESD(None, str(path), latent_channels=channels).requires_grad_(False)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"{path} is no tiny VAE for latents of {channels} channels, or not all of one. "
            f"Get it again from {SOURCE}, or {WAY_OUT}."
        ) from error


def _memory_used_decode(shape: Sequence[int], dtype: torch.dtype) -> float:
    return float(NUMBERS_A_CELL * math.prod(shape[-2:]) * shape[0] * dtype.itemsize)
