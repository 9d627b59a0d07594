"""Small models of the transformer families: ComfyUI's own classes, a block or two deep.

Each function gives what a run asks for besides its defaults: model, VAE, prompts, latent.
"""

from __future__ import annotations

from typing import Any

import torch

from . import tiny
from .tiny_clips import CLIPS, cosmos_predict2, krea2
from .tiny_flux import FLUXES, flux2_vae
from .tiny_unets import HIDDEN, asks, supported


def sd3_config(**changes: Any) -> dict[str, Any]:
    """MMDiT: depth 2 is 128 wide, as its detection has it."""
    return {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "depth": 2,
        "input_size": None,
        "adm_in_channels": 24,
        "context_size": tiny.CONTEXT,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": tiny.CONTEXT, "out_features": 128},
        },
        "num_patches": 64,
        "pos_embed_max_size": 8,
        "pos_embed_scaling_factor": None,
        **changes,
    }


def sd3(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    return asks(supported("SD3", sd3_config(**changes), dtype), dtype, pooled=24)


def sd35(dtype: torch.dtype) -> dict[str, Any]:
    """SD3.5 medium: normalised queries and keys, a second attention in the first block."""
    return sd3(dtype, qk_norm="rms", x_block_self_attn_layers=[0])


def auraflow(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "max_seq": 64,
        "cond_seq_dim": tiny.CONTEXT,
        "n_double_layers": 1,
        "n_layers": 2,
        "dim": HIDDEN,
        "n_heads": 2,
        "global_conddim": HIDDEN,
    }
    model = supported("AuraFlow", config, dtype)
    return asks(model, dtype, vae=tiny.vae(dtype), latent=torch.zeros(1, 4, 8, 8))


def pixart_sigma(dtype: torch.dtype) -> dict[str, Any]:
    """On 40 x 40 latents: its positions are scaled by the size, rounded to 64."""
    config = {
        "image_model": "pixart_sigma",
        "hidden_size": HIDDEN,
        "depth": 1,
        "num_heads": 2,
        "caption_channels": tiny.CONTEXT,
        "model_max_length": 5,
        "input_size": 40,
        "pe_interpolation": 1,
        "micro_condition": False,
    }
    model = supported("PixArtSigma", config, dtype)
    return asks(model, dtype, vae=tiny.vae(dtype), latent=torch.zeros(1, 4, 40, 40))


def hunyuan_dit(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "hydit",
        "hidden_size": HIDDEN,
        "depth": 4,
        "num_heads": 2,
        "text_states_dim": tiny.CONTEXT,
        "text_states_dim_t5": 16,
        "text_len": 5,
        "text_len_t5": 4,
        "attn_precision": None,
    }
    t5 = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    return asks(
        supported("HunyuanDiT", config, dtype),
        dtype,
        vae=tiny.vae(dtype),
        latent=torch.zeros(1, 4, 8, 8),
        conditioning_mt5xl=t5,
        attention_mask=torch.ones(1, 5),
        attention_mask_mt5xl=torch.ones(1, 4),
    )


def lumina2(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    config = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": HIDDEN,
        "cap_feat_dim": tiny.CONTEXT,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "multiple_of": 8,
        "qk_norm": True,
        "axes_dims": [4, 6, 6],
        "axes_lens": [300, 512, 512],
        "rope_theta": 10000.0,
        "ffn_dim_multiplier": 1.0,
        **changes,
    }
    return asks(supported("Lumina2", config, dtype), dtype)


def z_image(dtype: torch.dtype) -> dict[str, Any]:
    """256 wide, the least that its modulation allows."""
    return lumina2(
        dtype,
        dim=256,
        n_kv_heads=2,
        axes_dims=[32, 48, 48],
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=8,
    )


def hidream(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "hidream",
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "caption_channels": [tiny.CONTEXT, tiny.CONTEXT],
        "max_resolution": [16, 16],
        "in_channels": 16,
        "out_channels": 16,
        "llama_layers": [0, 1],
        "num_attention_heads": 2,
        "num_routed_experts": 4,
        "num_activated_experts": 2,
        "num_layers": 1,
        "num_single_layers": 1,
        "patch_size": 2,
        "text_emb_dim": 8,
    }
    llama = torch.randn(1, 2, 3, tiny.CONTEXT, generator=torch.Generator().manual_seed(3)).to(dtype)
    model = supported("HiDream", config, dtype)
    return asks(model, dtype, pooled=8, conditioning_llama3=llama)


def omnigen2(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "omnigen2",
        "hidden_size": HIDDEN,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": [4, 6, 6],
        "axes_lens": [64, 64, 64],
        "text_feat_dim": tiny.CONTEXT,
        "timestep_scale": 1000.0,
    }
    mask = torch.ones(1, 5, dtype=torch.long)
    return asks(supported("Omnigen2", config, dtype), dtype, attention_mask=mask)


def kandinsky5(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "kandinsky5",
        "in_text_dim": tiny.CONTEXT,
        "in_text_dim2": 8,
        "time_dim": HIDDEN,
        "model_dim": HIDDEN,
        "ff_dim": HIDDEN,
        "visual_embed_dim": 64,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": (4, 6, 6),
        "rope_scale_factor": (1.0, 1.0, 1.0),
    }
    return asks(supported("Kandinsky5Image", config, dtype), dtype, pooled=8)


def hunyuan_image(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "hunyuan_video",
        "in_channels": 64,
        "out_channels": 64,
        "patch_size": [1, 1],
        "vec_in_dim": None,
        "axes_dim": [8, 8],
        "context_in_dim": tiny.CONTEXT,
        "hidden_size": HIDDEN,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "theta": 256,
        "qkv_bias": True,
        "byt5": False,
        "meanflow": False,
        "guidance_embed": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    vae = tiny.vae_around(tiny.quiet_output(autoencoder(64)), dtype)
    vae.latent_channels = 64
    model = supported("HunyuanImage21", config, dtype)
    return asks(model, dtype, vae=vae, latent=torch.zeros(1, 64, 4, 4))


def autoencoder(channels: int) -> Any:
    import comfy.ldm.models.autoencoder

    ddconfig = {**tiny.DDCONFIG, "z_channels": channels}
    return comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=ddconfig, embed_dim=channels)


def ernie_image(dtype: torch.dtype) -> dict[str, Any]:
    config = {
        "image_model": "ernie",
        "hidden_size": HIDDEN,
        "num_attention_heads": 2,
        "num_layers": 1,
        "ffn_hidden_size": HIDDEN,
        "text_in_dim": tiny.CONTEXT,
        "rope_axes_dim": (4, 6, 6),
    }
    model = supported("ErnieImage", config, dtype)
    return asks(model, dtype, vae=flux2_vae(dtype), latent=torch.zeros(1, 128, 4, 4))


TRANSFORMERS = {
    "SD3": sd3,
    "SD3.5 medium": sd35,
    **FLUXES,
    "AuraFlow": auraflow,
    "PixArt Sigma": pixart_sigma,
    "Hunyuan-DiT": hunyuan_dit,
    "Lumina 2": lumina2,
    "Z-Image": z_image,
    "HiDream": hidream,
    "OmniGen2": omnigen2,
    "Kandinsky 5 image": kandinsky5,
    "HunyuanImage 2.1": hunyuan_image,
    **CLIPS,
}

WITHOUT_DOUBLE = {"Krea 2": krea2}
"""Part of their arithmetic stays in float32, where a finite difference is not exact."""

WITHOUT_BACKWARD = {"Cosmos Predict2": cosmos_predict2, "Ernie-Image": ernie_image}
"""They call kernels that have no backward, whatever the mode."""
