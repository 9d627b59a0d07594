"""A Flux of ComfyUI's own class, small enough for float32 everywhere."""

from __future__ import annotations

from typing import Any

import torch

from .families import Family, randomize

SETTINGS = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX = Family("Flux", SETTINGS, tokens=16, context=64, pooled=64, pixels=256, parameters=0)


def flux_model(dtype: torch.dtype, device: torch.device) -> Any:
    """A MODEL with random weights, nowhere zero."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.Flux(dict(SETTINGS))
    config.set_inference_dtype(dtype, None)
    made = comfy.model_base.Flux(config, device=device)
    randomize(made.diffusion_model)
    return comfy.model_patcher.ModelPatcher(
        made, load_device=device, offload_device=torch.device("cpu")
    )
