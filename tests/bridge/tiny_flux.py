"""Small models of Flux and of what was built on it: a block or two of ComfyUI's own classes."""

from __future__ import annotations

from typing import Any

import torch

from . import tiny
from .tiny_unets import asks, picture, supported


def flux(dtype: torch.dtype, name: str = "Flux", **changes: Any) -> dict[str, Any]:
    values = changes.pop("values", {})
    model = supported(name, {**tiny.FLUX, **changes}, dtype)
    return asks(model, dtype, pooled=8, cfg=1.0, **({"guidance": 3.5} | values))


def schnell(dtype: torch.dtype) -> dict[str, Any]:
    return flux(dtype, "FluxSchnell", guidance_embed=False)


def flux_fill(dtype: torch.dtype) -> dict[str, Any]:
    """Flux Fill: 384 channels a patch, of which 96 are noise, picture and mask."""
    values = {
        "concat_latent_image": picture(dtype, 16),
        "concat_mask": (
            torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(4)) > 0.5
        ).to(dtype),
    }
    return flux(dtype, "FluxInpaint", in_channels=96, values=values)


def flux_kontext(dtype: torch.dtype) -> dict[str, Any]:
    """Flux Kontext: a picture to go by, as tokens beside the noise."""
    return flux(dtype, values={"reference_latents": [picture(dtype, 16)]})


def flux2(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        **tiny.FLUX,
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "vec_in_dim": None,
        "axes_dim": [4, 4, 4, 4],
        "theta": 2000,
        "patch_size": 1,
        "qkv_bias": False,
        "ops_bias": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "txt_ids_dims": [3],
    }
    model = supported("Flux2", config, dtype)
    return asks(model, dtype, vae=flux2_vae(dtype), latent=torch.zeros(1, 128, 4, 4), cfg=1.0)


def flux2_vae(dtype: torch.dtype) -> Any:
    """A VAE as Flux 2 has it: latents normalised by statistics, four cells to a token."""
    made = tiny.vae(dtype, z_channels=32, batch_norm_latent=True)
    made.latent_channels = 128
    with torch.no_grad():
        made.first_stage_model.bn.running_mean.fill_(0.1)
        made.first_stage_model.bn.running_var.fill_(1.7)
    return made


def chroma(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        **{key: value for key, value in tiny.FLUX.items() if key != "guidance_embed"},
        "image_model": "chroma",
        "in_channels": 64,
        "out_channels": 64,
        "in_dim": 64,
        "out_dim": tiny.FLUX["hidden_size"],
        "hidden_dim": tiny.FLUX["hidden_size"],
        "n_layers": 1,
    }
    return asks(supported("Chroma", config, dtype), dtype)


def longcat(dtype: torch.dtype) -> dict[str, Any]:
    config = {**tiny.FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
    return asks(supported("LongCatImage", config, dtype), dtype)


FLUXES = {
    "Flux dev": flux,
    "Flux schnell": schnell,
    "Flux Fill": flux_fill,
    "Flux Kontext": flux_kontext,
    "Flux 2": flux2,
    "Chroma": chroma,
    "LongCat-Image": longcat,
}
