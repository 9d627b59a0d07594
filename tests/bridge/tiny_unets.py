"""Small models by ComfyUI's own configuration classes, and the UNet families.

Each function gives what a run asks for besides its defaults: model, prompts, sometimes more.
"""

from __future__ import annotations

from typing import Any

import torch

from . import tiny

HIDDEN = 32
"""Width of the transformers: two heads of 16."""


def supported(name: str, unet: dict[str, Any], dtype: torch.dtype, **keys: Any) -> Any:
    """A MODEL as ComfyUI's loader makes it for its class `name`, with random weights.

    `keys` stand in the checkpoint's state dict; by some the class tells its variants apart.
    """
    import comfy.supported_models

    config = getattr(comfy.supported_models, name)(unet)
    config.unet_config |= unet  # the class's own extras are for the full size
    config.set_inference_dtype(dtype, None)
    model = config.get_model(keys, device="cpu").to(dtype)
    return tiny.patcher(with_positions(model))


def with_positions(model: Any) -> Any:
    """Values for learned positions that are buffers, which start as whatever memory held."""
    generator = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith("pos_embed"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def unet(**changes: Any) -> dict[str, Any]:
    return {
        **tiny.UNET,
        "num_head_channels": -1,
        "out_channels": 4,
        "transformer_depth_output": [1, 1, 1, 1],
        "use_temporal_attention": False,
        **changes,
    }


def sdxl_unet(**changes: Any) -> dict[str, Any]:
    """As SDXL has it: no attention at the top, linear projections, a vector beside the text."""
    return unet(
        use_linear_in_transformer=True,
        transformer_depth=[0, 1],
        transformer_depth_output=[0, 0, 1, 1],
        num_classes="sequential",
        adm_in_channels=2816,
        **changes,
    )


def prompts(dtype: torch.dtype, pooled: int = 0, **values: Any) -> dict[str, Any]:
    """Positive and negative, each with a pooled vector of that length if there is one.

    A text encoder without one gives None, and older versions of ComfyUI ask for it.
    """
    made = {}
    for index, name in enumerate(("positive", "negative")):
        generator = torch.Generator().manual_seed(20 + index)
        vector = torch.randn(1, pooled, generator=generator, dtype=torch.float64).to(dtype)
        own = {"pooled_output": vector if pooled else None}
        made[name] = tiny.conditioning(1 + index, dtype, **own, **values)
    return made


def asks(
    model: Any,
    dtype: torch.dtype,
    pooled: int = 0,
    vae: Any = None,
    latent: torch.Tensor | None = None,
    cfg: float = 2.0,
    **values: Any,
) -> dict[str, Any]:
    """A run on 16-channel latents of 8 x 8, if nothing else is said."""
    samples = torch.zeros(1, 16, 8, 8) if latent is None else latent
    return {
        "model": model,
        "vae": tiny.flux_vae(dtype) if vae is None else vae,
        "latent": {"samples": samples},
        "cfg": cfg,
        **prompts(dtype, pooled, **values),
    }


def picture(dtype: torch.dtype, channels: int = 4, size: int = 8, seed: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, size, size, generator=generator, dtype=torch.float64).to(dtype)


def left_half(size: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    return mask


def sd15(dtype: torch.dtype) -> dict[str, Any]:
    return {"model": supported("SD15", unet(), dtype)}


def sd21_v(dtype: torch.dtype) -> dict[str, Any]:
    """v-prediction, which ComfyUI reads off the spread of one weight."""
    key = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    changes = {"use_linear_in_transformer": True, "attn_precision": torch.float32}
    model = supported("SD20", unet(**changes), dtype, **{key: torch.tensor([-1.0, 1.0])})
    return {"model": model}


def sd21_unclip(dtype: torch.dtype) -> dict[str, Any]:
    """unCLIP without an image: its vector is zero."""
    changes = {"num_classes": "sequential", "adm_in_channels": 1536}
    return {"model": supported("SD21UnclipL", unet(**changes), dtype)}


def sdxl(dtype: torch.dtype, **keys: Any) -> dict[str, Any]:
    sizes = {"width": 64, "height": 48, "crop_w": 8, "target_width": 64, "target_height": 64}
    return {"model": supported("SDXL", sdxl_unet(), dtype, **keys), **prompts(dtype, 1280, **sizes)}


def sdxl_v_zsnr(dtype: torch.dtype) -> dict[str, Any]:
    """v-prediction down to zero signal: the first sigma is 4,500."""
    return sdxl(dtype, v_pred=torch.tensor([]), ztsnr=torch.tensor([]))


def playground(dtype: torch.dtype) -> dict[str, Any]:
    """EDM sampling, and a latent format with a mean and a deviation."""
    return sdxl(dtype, edm_mean=torch.zeros(1), edm_std=torch.ones(1))


def sdxl_refiner(dtype: torch.dtype) -> dict[str, Any]:
    model = supported("SDXLRefiner", {**sdxl_unet(), "adm_in_channels": 2560}, dtype)
    return {"model": model, **prompts(dtype, 1280, aesthetic_score=7.0)}


def inpaint(dtype: torch.dtype, xl: bool = False) -> dict[str, Any]:
    """A 9-channel model, its mask and picture as the node InpaintModelConditioning makes them."""
    import nodes

    name, config = ("SDXL", sdxl_unet(in_channels=9)) if xl else ("SD15", unet(in_channels=9))
    texts = prompts(dtype, 1280 if xl else 0)
    pixels = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(6))
    vae = tiny.vae(torch.float32)
    positive, negative, latent = nodes.InpaintModelConditioning().encode(
        texts["positive"], texts["negative"], pixels, vae, left_half(16), noise_mask=True
    )
    return {
        "model": supported(name, config, dtype),
        "positive": positive,
        "negative": negative,
        "latent": latent,
        "denoise": 0.8,
    }


def sdxl_inpaint(dtype: torch.dtype) -> dict[str, Any]:
    return inpaint(dtype, xl=True)


def instruct_pix2pix(dtype: torch.dtype, xl: bool = False) -> dict[str, Any]:
    """An 8-channel model that is given the picture to change beside the noise."""
    name, config = ("SDXL", sdxl_unet(in_channels=8)) if xl else ("SD15", unet(in_channels=8))
    image = picture(dtype)
    return {
        "model": supported(f"{name}_instructpix2pix", config, dtype),
        **prompts(dtype, 1280 if xl else 0, concat_latent_image=image),
    }


def sdxl_instruct_pix2pix(dtype: torch.dtype) -> dict[str, Any]:
    return instruct_pix2pix(dtype, xl=True)


UNETS = {
    "SD1.5": sd15,
    "SD1.5 inpaint": inpaint,
    "SD1.5 InstructPix2Pix": instruct_pix2pix,
    "SD2.1 v-prediction": sd21_v,
    "SD2.1 unCLIP": sd21_unclip,
    "SDXL": sdxl,
    "SDXL v-prediction, zero SNR": sdxl_v_zsnr,
    "SDXL inpaint": sdxl_inpaint,
    "SDXL InstructPix2Pix": sdxl_instruct_pix2pix,
    "SDXL refiner": sdxl_refiner,
    "Playground 2.5": playground,
}
