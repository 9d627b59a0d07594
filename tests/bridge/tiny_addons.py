"""What is added to small models of other families than SD1.5: LoRAs and ControlNets."""

from __future__ import annotations

from typing import Any

import torch

from . import tiny
from .tiny_transformers import sd3_config
from .tiny_unets import sdxl_unet, with_positions

LORA_AT = {"SDXL": "attn2.to_q", "SD3": "x_block.attn.qkv", "Flux dev": "img_attn.qkv"}
"""A part of the names of the layers that a LoRA changes."""

Control = tuple[Any, bool]
"""A ControlNet, and whether its hint is a latent."""


def with_lora(name: str, model: Any, rank: int = 2) -> Any:
    """The MODEL with a LoRA, by the names that ComfyUI knows for every family."""
    import comfy.sd

    generator = torch.Generator().manual_seed(11)
    state = {}
    for key, weight in model.model.named_parameters():
        if LORA_AT[name] in key and key.endswith(".weight"):
            rows, columns = weight.shape
            layer = key.removesuffix(".weight")
            state[f"{layer}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
            state[f"{layer}.lora_down.weight"] = torch.randn(rank, columns, generator=generator)
            state[f"{layer}.alpha"] = torch.tensor(1.0)
    assert state
    return comfy.sd.load_lora_for_models(model, None, state, 0.1, 0)[0]


def sdxl_control(dtype: torch.dtype) -> Control:
    import comfy.cldm.cldm

    config = sdxl_unet()
    for name in ("out_channels", "transformer_depth_output", "use_temporal_attention"):
        config.pop(name)
    return comfy.cldm.cldm.ControlNet(hint_channels=3, dtype=dtype, **config), False


def sd3_control(dtype: torch.dtype) -> Control:
    import comfy.cldm.mmdit

    return comfy.cldm.mmdit.ControlNet(
        num_blocks=1, operations=torch.nn, dtype=dtype, **sd3_config()
    ), True


def flux_control(dtype: torch.dtype) -> Control:
    import comfy.ldm.flux.controlnet
    import comfy.ops

    return comfy.ldm.flux.controlnet.ControlNetFlux(
        operations=comfy.ops.disable_weight_init, dtype=dtype, **tiny.FLUX
    ), False


CONTROLS = {"SDXL": sdxl_control, "SD3": sd3_control, "Flux dev": flux_control}


def control_net(name: str, dtype: torch.dtype, vae: Any) -> Any:
    """A ControlNet of the family with output layers that are not zero, and a random hint."""
    import comfy.controlnet
    import comfy.latent_formats

    network, by_latent = CONTROLS[name](dtype)
    options: dict[str, Any] = {"extra_conds": ["y", "guidance"] if name == "Flux dev" else ["y"]}
    if by_latent:
        options |= {"compression_ratio": 1, "latent_format": comfy.latent_formats.SD3()}
    control = comfy.controlnet.ControlNet(
        tiny.randomize(with_positions(network.to(dtype)), 3),
        load_device=torch.device("cpu"),
        **options,
    )
    generator = torch.Generator().manual_seed(3)
    hint = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64).to(dtype)
    return control.set_cond_hint(hint, strength=0.7, vae=vae if by_latent else None)
