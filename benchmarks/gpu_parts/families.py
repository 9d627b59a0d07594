"""Models of ComfyUI's own classes with random weights, created where they are to run.

At the published size, or (`tiny`) with the same parts and a handful of channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
SMALL_VAE = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
COMMON = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
TINY_STEM = {"model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2]}
QUIET_EPS = 0.3
"""Of the UNet's last layer: a map that does not turn abruptly over 50 steps."""
QUIET_PIXELS = 0.15
"""Of a decoder's last layer: mid-grey with detail, so that no pixel is burnt out."""


class Family(NamedTuple):
    """unet: as ComfyUI detects it in a checkpoint; it adds the number of heads itself.

    parameters: of the published UNet. pooled: width of the pooled text features, 0: none.
    pixels: a side of its pictures.
    """

    name: str
    unet: dict[str, Any]
    tokens: int
    context: int
    pooled: int
    pixels: int
    parameters: int


SD15 = Family(
    "SD1.5",
    {
        **COMMON,
        "adm_in_channels": None,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "use_linear_in_transformer": False,
        "context_dim": 768,
    },
    tokens=77,
    context=768,
    pooled=0,
    pixels=512,
    parameters=859_520_964,
)
SDXL = Family(
    "SDXL",
    {
        **COMMON,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "use_linear_in_transformer": True,
        "context_dim": 2048,
    },
    tokens=77,
    context=2048,
    pooled=1280,
    pixels=1024,
    parameters=2_567_463_684,
)
TINY_PIXELS = 64


def tiny(family: Family) -> Family:
    """The family with few channels, small pictures and short prompts."""
    changes: dict[str, Any] = {**TINY_STEM, "context_dim": 16, "transformer_depth_middle": 1}
    if family is SD15:
        changes |= {"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]}
    else:
        changes |= {"transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2]}
        changes |= {"adm_in_channels": 16 + 6 * 256}
    return family._replace(
        unet={**family.unet, **changes},
        tokens=5,
        context=16,
        pooled=16 if family.pooled else 0,
        pixels=TINY_PIXELS,
        parameters=0,
    )


def config_of(family: Family, dtype: torch.dtype, computed_in: torch.dtype | None = None) -> Any:
    """ComfyUI's model config. computed_in: what weights of `dtype` are cast to in every call."""
    import comfy.supported_models

    kind = comfy.supported_models.SDXL if family.pooled else comfy.supported_models.SD15
    config = kind(dict(family.unet))
    config.set_inference_dtype(dtype, computed_in)
    return config


def base_model(config: Any, device: torch.device) -> Any:
    """comfy.model_base's model, its weights not yet given a value."""
    import comfy.model_base

    sdxl = config.unet_config["adm_in_channels"] is not None
    kind = comfy.model_base.SDXL if sdxl else comfy.model_base.BaseModel
    return kind(config, model_type=comfy.model_base.ModelType.EPS, device=device)


def model(
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    computed_in: torch.dtype | None = None,
    rounded_to: torch.dtype = torch.bfloat16,
    weights_on: torch.device | None = None,
) -> Any:
    """A MODEL that runs on `device`; its patcher is a classic one, which never pages weights.

    rounded_to: weights are numbers of this dtype, so that models of wider ones hold the same.
    weights_on: where they lie before it is loaded; else on `device`.
    """
    import comfy.model_patcher

    made = base_model(config_of(family, dtype, computed_in), weights_on or device)
    randomize(made.diffusion_model, rounded_to=rounded_to)
    last = made.diffusion_model.out[-1].weight
    last.copy_((last.float() * QUIET_EPS).to(rounded_to))
    return comfy.model_patcher.ModelPatcher(
        made, load_device=device, offload_device=torch.device("cpu")
    )


@torch.no_grad()
def randomize(
    module: torch.nn.Module, seed: int = 0, rounded_to: torch.dtype = torch.bfloat16
) -> torch.nn.Module:
    """N(0, 1 / fan-in), norms about 1: also for output layers, which models start at zero."""
    generator: torch.Generator | None = None
    for name, parameter in module.named_parameters():
        if generator is None:
            generator = torch.Generator(parameter.device).manual_seed(seed)
        values = torch.empty(parameter.shape, device=parameter.device)
        values.normal_(generator=generator)
        if parameter.ndim > 1:
            values *= parameter[0].numel() ** -0.5
        else:
            values.mul_(0.02).add_(1.0 if name.endswith(("weight", "scale")) else 0.0)
        parameter.copy_(values.to(rounded_to))
    return module.requires_grad_(False).eval()


def vae(device: torch.device, small: bool, channels: int = 4, dtype: Any = None) -> Any:
    """A VAE of SD's kind, 8 pixels a latent cell; dtype: ComfyUI's own choice."""
    import comfy.ldm.models.autoencoder
    import comfy.sd

    ddconfig = {**DDCONFIG, "z_channels": channels}
    if small:
        ddconfig |= SMALL_VAE
    config = {"params": {"ddconfig": ddconfig, "embed_dim": channels}}
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**config["params"]).state_dict()
    made = comfy.sd.VAE(sd=weights, config=config, dtype=dtype)
    made.latent_channels = channels
    randomize(made.first_stage_model.to(device), seed=7)
    made.first_stage_model.decoder.conv_out.weight.mul_(QUIET_PIXELS)
    return made


def taesd_weights(seed: int = 7) -> dict[str, torch.Tensor]:
    """The state dict of a TAESD for 4 channels, whose pictures are mid-grey."""
    import comfy.taesd.taesd

    made: Any = randomize(comfy.taesd.taesd.TAESD(latent_channels=4), seed)
    last = made.taesd_decoder[-1]
    with torch.no_grad():
        last.weight.mul_(QUIET_PIXELS)
        last.bias.fill_(0.5)
    return made.state_dict()


def conditioning(family: Family, seed: int) -> Any:
    """A CONDITIONING of random text features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, family.tokens, family.context, generator=generator)
    if not family.pooled:
        return [[features, {}]]
    return [[features, {"pooled_output": torch.randn(1, family.pooled, generator=generator)}]]
