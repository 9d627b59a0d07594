"""The demo model's networks, built from ComfyUI's own classes.

ComfyUI is found through the environment variable COMFYUI_PATH.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

TOKENIZER = Path(__file__).parents[1] / "tokenizer"
MAX_LENGTH = 24
UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 128,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": MAX_LENGTH,
    "vocab_size": 1017,
    "bos_token_id": 1015,
    "eos_token_id": 1016,
}
VAE: dict[str, Any] = {
    "embed_dim": 8,
    "ddconfig": {
        "double_z": True,
        "z_channels": 8,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


def use_comfyui() -> None:
    """Make ComfyUI importable, on the CPU where there is no GPU."""
    path = os.environ.get("COMFYUI_PATH", "")
    if not (Path(path) / "comfy").is_dir():
        sys.exit("ComfyUI was not found. Set COMFYUI_PATH to its folder.")
    sys.path.append(path)
    argv, sys.argv = sys.argv, sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    import comfy.ops  # noqa: F401

    sys.argv = argv


def start_weights(module: nn.Module) -> None:
    """PyTorch's usual initial weights: ComfyUI's layers are built without any."""
    for part in module.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(part, kind):
                kind.reset_parameters(part)
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.3)


def attention(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **__: Any):
    """Softmax attention written out; its backward is much quicker on a CPU than the fused one."""
    q, k, v = (t.view(len(t), t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


ATTENTION = {"optimized_attention_override": attention}
"""UNetModel's transformer_options for training."""


def build_unet() -> nn.Module:
    """ComfyUI's UNetModel with the last layer of every residual branch at zero."""
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    unet = UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    start_weights(unet)
    ends = [unet.out[-1]]
    for part in unet.modules():
        if isinstance(part, ResBlock):
            ends.append(part.out_layers[-1])
        elif isinstance(part, SpatialTransformer):
            ends.append(part.proj_out)
    for end in ends:
        nn.init.zeros_(end.weight)
        nn.init.zeros_(end.bias)
    return unet


def build_text() -> nn.Module:
    """ComfyUI's CLIPTextModel with our vocabulary size."""
    import comfy.ops
    from comfy.clip_model import CLIPEmbeddings, CLIPTextModel

    ops = comfy.ops.disable_weight_init
    text = CLIPTextModel(TEXT, torch.float32, None, ops)
    text.text_model.embeddings = CLIPEmbeddings(
        TEXT["hidden_size"], TEXT["vocab_size"], MAX_LENGTH, torch.float32, None, ops
    )
    start_weights(text)
    nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=0.02)
    return text


def encode_text(text: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """CLIPTextModel's last hidden state [B, L, 128], out of place so that it has a gradient."""
    model, heads = text.text_model, TEXT["num_attention_heads"]
    length = tokens.shape[1]
    x = model.embeddings.token_embedding(tokens) + model.embeddings.position_embedding.weight
    for layer in model.encoder.layers:
        h, attn = layer.layer_norm1(x), layer.self_attn
        q, k, v = (
            p(h).view(len(h), length, heads, -1).transpose(1, 2)
            for p in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attn.out_proj(mixed.transpose(1, 2).reshape(h.shape))
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.final_layer_norm(x)


def build_vae() -> nn.Module:
    """ComfyUI's AutoencoderKL, factor 4, 8 latent channels."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    vae = AutoencoderKL(**VAE)
    start_weights(vae)
    return vae


def sigmas() -> torch.Tensor:
    """ComfyUI's 1000 discrete sigmas (Stable Diffusion's scaled-linear betas)."""
    from comfy.model_sampling import ModelSamplingDiscrete

    return ModelSamplingDiscrete().sigmas


class Tokens:
    """Captions to token ids [B, 24], padded with the end token as ComfyUI does."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        self.known: dict[str, list[int]] = {}

    def row(self, caption: str) -> list[int]:
        if caption not in self.known:
            ids = self.tokenizer(caption)["input_ids"][:MAX_LENGTH]
            ids[-1] = TEXT["eos_token_id"]
            self.known[caption] = ids + [TEXT["eos_token_id"]] * (MAX_LENGTH - len(ids))
        return self.known[caption]

    def __call__(self, captions: list[str]) -> torch.Tensor:
        return torch.tensor([self.row(c) for c in captions])
