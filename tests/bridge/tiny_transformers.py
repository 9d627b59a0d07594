"""Small models of the transformer families: ComfyUI's own classes, a block or two deep.

Each function gives what a run asks for besides its defaults: model, VAE, prompts, latent.
"""

from __future__ import annotations

from typing import Any

import torch

from . import tiny
from .tiny_unets import picture, prompts, supported

HIDDEN = 32
"""Width of the transformers: two heads of 16."""


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


def sd3(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    """MMDiT: depth 2 is 128 wide, as its detection has it."""
    config = {
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
    return asks(supported("SD3", config, dtype), dtype, pooled=24)


def sd35(dtype: torch.dtype) -> dict[str, Any]:
    """SD3.5 medium: normalised queries and keys, a second attention in the first block."""
    return sd3(dtype, qk_norm="rms", x_block_self_attn_layers=[0])


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
        "out_dim": HIDDEN,
        "hidden_dim": HIDDEN,
        "n_layers": 1,
    }
    return asks(supported("Chroma", config, dtype), dtype)


def longcat(dtype: torch.dtype) -> dict[str, Any]:
    config = {**tiny.FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
    return asks(supported("LongCatImage", config, dtype), dtype)


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


TRANSFORMERS = {
    "SD3": sd3,
    "SD3.5 medium": sd35,
    "Flux dev": flux,
    "Flux schnell": schnell,
    "Flux Fill": flux_fill,
    "Flux Kontext": flux_kontext,
    "Flux 2": flux2,
    "Chroma": chroma,
    "LongCat-Image": longcat,
    "AuraFlow": auraflow,
    "PixArt Sigma": pixart_sigma,
    "Hunyuan-DiT": hunyuan_dit,
    "Lumina 2": lumina2,
    "Z-Image": z_image,
    "HiDream": hidream,
    "OmniGen2": omnigen2,
    "Kandinsky 5 image": kandinsky5,
    "HunyuanImage 2.1": hunyuan_image,
    "Qwen-Image": qwen_image,
    "Qwen-Image-Edit": qwen_image_edit,
}
