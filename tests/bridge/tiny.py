"""Small models of ComfyUI's own classes, with random weights that are nowhere zero."""

from __future__ import annotations

from typing import Any

import torch

LATENT = (4, 8, 8)


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.4) -> torch.nn.Module:
    """Give every weight a value: also output layers, which models start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            near_one = parameter.ndim == 1 and name.endswith("weight")
            value = 1 + 0.1 * value if near_one else value * (scale if fan == 1 else fan**-0.5)
            parameter.copy_(value)
    return module.requires_grad_(False).eval()


def sd_model(dtype: torch.dtype = torch.float64, v_prediction: bool = False) -> Any:
    """A MODEL of the SD1.5 kind: UNetModel with cross-attention, 4-channel latents."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    unet = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": (1, 2),
        "num_heads": 2,
        "use_spatial_transformer": True,
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 16,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
        "dtype": dtype,
    }
    config = comfy.supported_models.SD15(unet)
    config.unet_config["dtype"] = dtype
    kind = comfy.model_base.ModelType.V_PREDICTION if v_prediction else None
    model = comfy.model_base.BaseModel(
        config, model_type=kind or comfy.model_base.ModelType.EPS, device="cpu"
    ).to(dtype)
    return _patcher(model)


def vae(dtype: torch.dtype = torch.float64) -> Any:
    """A VAE of the SD kind (AutoencoderKL), 8 x 8 latents -> 16 x 16 pixels."""
    import comfy.ldm.models.autoencoder
    import comfy.sd

    ddconfig = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": ddconfig, "embed_dim": 4}}
    reference = comfy.ldm.models.autoencoder.AutoencoderKL(**config["params"])
    weights = randomize(reference, 7, 0.1).state_dict()
    made = comfy.sd.VAE(sd=weights, config=config, dtype=dtype)
    made.downscale_ratio = made.upscale_ratio = 2
    return made


def conditioning(seed: int, dtype: torch.dtype = torch.float64, tokens: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, 16, generator=generator, dtype=dtype), {}]]


def _patcher(model: Any) -> Any:
    import comfy.model_management
    import comfy.model_patcher

    randomize(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
