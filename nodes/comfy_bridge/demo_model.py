"""Load the bundled demo model as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.clip_model import CLIPEmbeddings, CLIPTextModel
from safetensors import SafetensorError, safe_open

DEMO = Path(__file__).resolve().parents[2] / "demo"
WEIGHTS = DEMO / "model.safetensors"
TOKENIZER = DEMO / "tokenizer"
UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.clip_l.", "first_stage_model."


class DemoLatent(comfy.latent_formats.LatentFormat):
    """8 channels, a quarter of the picture's width and height, variance 1."""

    latent_channels = 8
    spacial_downscale_ratio = 4


class DemoConfig(comfy.supported_models_base.BASE):
    """A UNet of Stable Diffusion's shape with v-prediction, always computed in float32."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = DemoLatent
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 1.0

    def model_type(self, state_dict: dict[str, Any], prefix: str = "") -> Any:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        return False


class DemoTextModel(CLIPTextModel):
    """ComfyUI's CLIP text model with the vocabulary size of its config."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any):
        super().__init__(config, dtype, device, operations)
        size, count = config["hidden_size"], config["vocab_size"]
        length = config["max_position_embeddings"]
        self.text_model.embeddings = CLIPEmbeddings(size, count, length, dtype, device, operations)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, config) of a demo model file.

    Raises RuntimeError that says what to do if the file is missing, cut or of another kind.
    """
    if not path.is_file():
        raise RuntimeError(f"The demo model file is missing: {path}. Install the pack again.")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RuntimeError(
            f"The demo model file is damaged: {path}. Delete it and install the pack again."
        ) from error


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def build_model(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """MODEL: as comfy.sd.load_state_dict_guess_config does, with the config given."""
    management = comfy.model_management
    device = management.get_torch_device()
    settings = DemoConfig(config["unet"])
    settings.latent_format.latent_rgb_factors = config["latent_rgb_factors"]
    settings.latent_format.latent_rgb_factors_bias = config["latent_rgb_factors_bias"]
    parameters = comfy.utils.calculate_parameters(tensors, UNET)
    dtypes = settings.supported_inference_dtypes
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=dtypes)
    settings.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    start = management.unet_inital_load_device(parameters, dtype)
    model = settings.get_model(tensors, UNET, device=start)
    patcher = patcher_class(disable_dynamic)(
        model, load_device=device, offload_device=management.unet_offload_device()
    )
    model.load_model_weights(
        {k: v for k, v in tensors.items() if k.startswith(UNET)}, UNET, assign=patcher.is_dynamic()
    )
    return patcher


def patcher_class(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """ComfyUI's default patcher, or the classic one that never pages weights."""
    if disable_dynamic:
        return comfy.model_patcher.ModelPatcher
    return comfy.model_patcher.CoreModelPatcher


def build_clip(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], disable_dynamic: bool
) -> comfy.sd.CLIP:
    """CLIP: ComfyUI's SD1 text encoder classes with our tokenizer, size and vocabulary."""
    text = config["text"]
    length = text["max_position_embeddings"]
    ends = {"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["eos_token_id"]}

    tokenizer = partial(
        sd1_clip.SDTokenizer, str(TOKENIZER), length, embedding_size=text["hidden_size"]
    )
    encoder = partial(
        sd1_clip.SDClipModel,
        max_length=length,
        textmodel_json_config=dict(text),
        model_class=DemoTextModel,
        special_tokens=ends,
        return_projected_pooled=False,
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(sd1_clip.SD1Tokenizer, tokenizer=tokenizer),
        partial(sd1_clip.SD1ClipModel, clip_model=encoder),
    )
    weights = {"clip_l." + k: v for k, v in part(tensors, TEXT).items()}
    return comfy.sd.CLIP(
        target,
        embedding_directory=None,
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=weights,
        model_options={"dtype": torch.float32},
        disable_dynamic=disable_dynamic,
    )


def build_vae(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], disable_dynamic: bool
) -> comfy.sd.VAE:
    """VAE: ComfyUI's AutoencoderKL; its size is given because detection expects SD's own."""
    vae = comfy.sd.VAE(sd=part(tensors, VAE), config={"params": dict(config["vae"])})
    vae.latent_channels = DemoLatent.latent_channels
    vae.downscale_ratio = vae.upscale_ratio = DemoLatent.spacial_downscale_ratio
    if disable_dynamic and vae.patcher.is_dynamic():
        old = vae.patcher
        vae.patcher = comfy.model_patcher.ModelPatcher(
            vae.first_stage_model, load_device=old.load_device, offload_device=old.offload_device
        )
    return vae


def load_demo_model(
    path: str | Path = WEIGHTS, disable_dynamic: bool = False
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Return (MODEL, CLIP, VAE) of the demo model.

    Each patcher knows how it can be loaded once more (ComfyUI's cached_patcher_init), so that
    weights that stay in memory, which gradients need, can be had on every machine.
    Raises RuntimeError if the file is missing or damaged.
    """
    tensors, config = read_weights(Path(path))
    model = build_model(tensors, config, disable_dynamic)
    clip = build_clip(tensors, config, disable_dynamic)
    vae = build_vae(tensors, config, disable_dynamic)
    patchers = (model, clip.patcher, vae.patcher)
    for index, patcher in enumerate(patchers):
        patcher.cached_patcher_init = (load_demo_patcher, (str(path), index))
    return model, clip, vae


def load_demo_patcher(
    path: str, index: int, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of the freshly loaded demo model's MODEL (0), CLIP (1) or VAE (2)."""
    model, clip, vae = load_demo_model(path, disable_dynamic)
    return (model, clip.patcher, vae.patcher)[index]
