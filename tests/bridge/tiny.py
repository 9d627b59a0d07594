"""Small models of ComfyUI's own classes, with random weights that are nowhere zero."""

from __future__ import annotations

from typing import Any

import torch

LATENT = (4, 8, 8)
CONTEXT = 16

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "legacy": False,
}

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": CONTEXT,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}

DDCONFIG = {
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


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.4) -> torch.nn.Module:
    """Give every weight a value: also output layers, which models start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            near_one = parameter.ndim == 1 and name.endswith(("weight", "scale"))
            value = 1 + 0.1 * value if near_one else value * (scale if fan == 1 else fan**-0.5)
            parameter.copy_(value)
    return module.requires_grad_(False).eval()


def sd_model(
    dtype: torch.dtype = torch.float64, v_prediction: bool = False, device: Any = None
) -> Any:
    """A MODEL of the SD1.5 kind: UNetModel with cross-attention, 4-channel latents."""
    import comfy.model_base
    import comfy.supported_models

    unet = {
        **UNET,
        "out_channels": 4,
        "transformer_depth_output": [1, 1, 1, 1],
        "use_temporal_attention": False,
        "dtype": dtype,
    }
    config = comfy.supported_models.SD15(unet)
    config.unet_config["dtype"] = dtype
    kinds = comfy.model_base.ModelType
    kind = kinds.V_PREDICTION if v_prediction else kinds.EPS
    model = comfy.model_base.BaseModel(config, model_type=kind, device="cpu").to(dtype)
    return patcher(model, device)


def flux_model(dtype: torch.dtype = torch.float64, device: Any = None) -> Any:
    """A MODEL of the Flux kind: rectified flow, 16-channel latents, blocks that add in place."""
    import comfy.model_base
    import comfy.supported_models

    config = comfy.supported_models.Flux({**FLUX, "dtype": dtype})
    config.unet_config["dtype"] = dtype
    return patcher(comfy.model_base.Flux(config, device="cpu").to(dtype), device)


def patcher(model: Any, device: Any = None) -> Any:
    """A ModelPatcher around a model with random weights."""
    import comfy.model_patcher

    randomize(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device(device or "cpu"), offload_device=torch.device("cpu")
    )


def vae(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A VAE of the SD kind (AutoencoderKL), 8 x 8 latents -> 16 x 16 pixels, none burnt out.

    `changes` go to its ddconfig.
    """
    import comfy.ldm.models.autoencoder
    import comfy.sd

    ddconfig = {**DDCONFIG, **changes}
    config = {"params": {"ddconfig": ddconfig, "embed_dim": ddconfig["z_channels"]}}
    reference = comfy.ldm.models.autoencoder.AutoencoderKL(**config["params"])
    made = comfy.sd.VAE(sd=quiet_output(reference).state_dict(), config=config, dtype=dtype)
    made.latent_channels = ddconfig["z_channels"]
    made.downscale_ratio = made.upscale_ratio = 2 ** (len(ddconfig["ch_mult"]) - 1)
    return made


def flux_vae(dtype: torch.dtype = torch.float64) -> Any:
    """A VAE as Flux has it: AutoencodingEngine without quant_conv, 16-channel latents."""
    import comfy.ldm.models.autoencoder
    import comfy.sd

    engine = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={
            "target": "comfy.ldm.modules.diffusionmodules.model.Encoder",
            "params": {**DDCONFIG, "z_channels": 16},
        },
        decoder_config={
            "target": "comfy.ldm.modules.diffusionmodules.model.Decoder",
            "params": {**DDCONFIG, "z_channels": 16},
        },
    )
    made = vae_around(quiet_output(engine), dtype)
    made.latent_channels = 16
    return made


def taesd_vae(dtype: torch.dtype = torch.float64) -> Any:
    """A TAESD, 8 x 8 latents -> 64 x 64 pixels."""
    import comfy.sd
    import comfy.taesd.taesd

    model = randomize(comfy.taesd.taesd.TAESD(latent_channels=4), 7, 0.1)
    with torch.no_grad():
        model.taesd_decoder[-1].weight *= 0.15
        model.taesd_decoder[-1].bias.fill_(0.5)
    made = comfy.sd.VAE(sd=model.state_dict(), dtype=dtype)
    return made


def vae_around(first_stage: torch.nn.Module, dtype: torch.dtype) -> Any:
    """A VAE object of ComfyUI around any first-stage model (2 pixels a latent cell)."""
    import comfy.model_patcher

    made = vae(dtype)
    made.first_stage_model = first_stage.to(dtype).eval().requires_grad_(False)
    made.patcher = comfy.model_patcher.ModelPatcher(
        made.first_stage_model, load_device=made.device, offload_device=torch.device("cpu")
    )
    return made


def quiet_output(model: torch.nn.Module, seed: int = 7) -> torch.nn.Module:
    """Random weights whose pictures are mid-grey with detail, so that no pixel is clamped."""
    randomize(model, seed, 0.1)
    decoder: Any = model.decoder
    with torch.no_grad():
        decoder.conv_out.weight *= 0.15
    return model


def control_net(
    dtype: torch.dtype = torch.float64, seed: int = 3, vae: Any = None, **changes: Any
) -> Any:
    """A ControlNet of the SD1.5 kind with output layers that are not zero, and a random hint.

    With a VAE its hint is a latent, as Flux and SD3 have it. `changes` go to set_cond_hint.
    """
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.latent_formats

    channels = 3 if vae is None else 4
    model = comfy.cldm.cldm.ControlNet(hint_channels=channels, dtype=dtype, **UNET).to(dtype)
    control = comfy.controlnet.ControlNet(
        randomize(model, seed),
        load_device=torch.device("cpu"),
        latent_format=None if vae is None else comfy.latent_formats.SD15(),
    )
    generator = torch.Generator().manual_seed(seed)
    hint = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64).to(dtype)
    return control.set_cond_hint(hint, vae=vae, **changes)


def lora_model(model: Any, strength: float = 1.0, seed: int = 11) -> Any:
    """The MODEL with a LoRA on all its cross-attention queries, loaded by ComfyUI's own loader."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora(model, seed), strength, 0)[0]


def lora(model: Any, seed: int = 11, rank: int = 2) -> dict[str, torch.Tensor]:
    """The state dict of a LoRA for the model's attn2.to_q, large enough to be felt."""
    import comfy.lora

    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.model.named_parameters())
    state = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if not name.startswith("lora_unet_") or not name.endswith("attn2_to_q"):
            continue
        rows, columns = weights[key].shape
        state[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
        state[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=generator)
        state[f"{name}.alpha"] = torch.tensor(1.0)
    assert state
    return state


def hook_lora(model: Any, keyframes: bool = False) -> Any:
    """A hook LoRA for conditionings; with keyframes its strength falls half-way."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora(model), 1.0, 0.0)
    if keyframes:
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
        frames.add(comfy.hooks.HookKeyframe(strength=0.3, start_percent=0.5))
        hooks.set_keyframes_on_hooks(frames)
    return hooks


def conditioning(
    seed: int, dtype: torch.dtype = torch.float64, tokens: int = 5, **values: Any
) -> Any:
    """A CONDITIONING of random text features; `values` go into its dict."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, tokens, CONTEXT, generator=generator, dtype=torch.float64)
    return [[features.to(dtype), dict(values)]]


def flux_conditioning(seed: int, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed + 100)
    pooled = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    return conditioning(seed, dtype, pooled_output=pooled.to(dtype), guidance=3.5)
