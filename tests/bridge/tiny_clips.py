"""Small models whose pictures are clips of one frame: Qwen-Image, Krea 2, video models."""

from __future__ import annotations

from typing import Any

import torch

from . import tiny
from .tiny_unets import HIDDEN, asks, picture, supported


def wan_vae(dtype: torch.dtype) -> Any:
    """A VAE as Qwen-Image has it: it decodes clips [B,16,T,h,w], of which a picture is one."""
    import comfy.ldm.wan.vae

    model: Any = comfy.ldm.wan.vae.WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
    )
    tiny.randomize(model, 7, 0.1)
    with torch.no_grad():
        model.decoder.head[-1].weight *= 0.15
    made = tiny.vae_around(model, dtype)
    made.latent_channels, made.latent_dim = 16, 3
    made.memory_used_decode = lambda shape, dtype: 2200 * shape[3] * shape[4] * 4 * dtype.itemsize
    made.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 2, 2)
    made.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 2, 2)
    return made


def qwen_image(dtype: torch.dtype, **values: Any) -> dict[str, Any]:
    config = {
        "image_model": "qwen_image",
        "in_channels": 64,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": tiny.CONTEXT,
        "axes_dims_rope": (4, 6, 6),
    }
    return asks(supported("QwenImage", config, dtype), dtype, vae=wan_vae(dtype), **values)


def qwen_image_edit(dtype: torch.dtype) -> dict[str, Any]:
    """Qwen-Image-Edit: a picture to go by, as tokens beside the noise."""
    return qwen_image(dtype, reference_latents=[picture(dtype, 16).unsqueeze(2)])


def wan(dtype: torch.dtype) -> dict[str, Any]:
    """Wan 2.1, a video model, for one frame."""
    config = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": HIDDEN,
        "ffn_dim": HIDDEN,
        "freq_dim": 16,
        "text_dim": tiny.CONTEXT,
        "in_dim": 16,
        "out_dim": 16,
        "num_heads": 2,
        "num_layers": 1,
    }
    return asks(supported("WAN21_T2V", config, dtype), dtype, vae=wan_vae(dtype))


def cosmos_predict2(dtype: torch.dtype) -> dict[str, Any]:
    """Flow matching written as sigmas above 1."""
    config = {
        "image_model": "cosmos_predict2",
        "max_img_h": 32,
        "max_img_w": 32,
        "max_frames": 4,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": HIDDEN,
        "num_blocks": 1,
        "num_heads": 2,
        "crossattn_emb_channels": tiny.CONTEXT,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "rope_enable_fps_modulation": False,
    }
    return asks(supported("CosmosT2IPredict2", config, dtype), dtype, vae=wan_vae(dtype))


def krea2(dtype: torch.dtype) -> dict[str, Any]:
    """Its text is the states of several layers, one after another."""
    config = {
        "image_model": "krea2",
        "features": HIDDEN,
        "tdim": HIDDEN,
        "txtdim": tiny.CONTEXT // 2,
        "txtlayers": 2,
        "heads": 2,
        "kvheads": 1,
        "txtheads": 2,
        "txtkvheads": 2,
        "multiplier": 2,
        "layers": 1,
    }
    return asks(supported("Krea2", config, dtype), dtype, vae=wan_vae(dtype))


CLIPS = {"Qwen-Image": qwen_image, "Qwen-Image-Edit": qwen_image_edit, "Wan 2.1": wan}
