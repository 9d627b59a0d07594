"""ImageReward's network: the patches of a ViT, a BERT that attends to them, and a head."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base import RewardError
from ..fill import check_used, filled

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
HEAD_LAYERS = (0, 2, 4, 6, 7)  # the numbers between are dropouts
ATTENTION_WIDTH = 64  # of one attention head, in all ViTs of BLIP

_VISION_NAMES = (  # transformers' names, the file's names
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.", "blocks."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    (".layer_norm", ".norm"),
    ("post_layernorm.", "norm."),
)


class Blip(torch.nn.Module):
    """vision: transformers' BlipVisionModel; text: its BlipTextModel; head: affine layers.

    The head comes after `forward`: its states [B, D] -> [B, 1], in float32 as published.
    """

    def __init__(self, vision: Any, text: Any, head: torch.nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] and token ids [B, N] -> the first token's state [B, D]."""
        patches = self.vision(pixel_values=pixels).last_hidden_state
        states: Tensor = self.text(
            input_ids=ids,
            attention_mask=(ids != self.text.config.pad_token_id).long(),
            encoder_hidden_states=patches,
        ).last_hidden_state
        return states[:, 0]


def build(
    state: Mapping[str, Tensor],
    med_config: Mapping[str, Any],
    dtype: torch.dtype,
    path: Path,
    reward: str,
) -> Blip:
    """The network of ImageReward's state dict; sizes from the tensors and from med_config.json.

    vision and text are in dtype. BLIP's two projections (blip.vision_proj and blip.text_proj) lie
    in the file and take no part. Raises RewardError.
    """
    try:
        vision = _vision_sizes(state)
        text = _text_sizes(med_config, vision["hidden_size"])
        widths = [tuple(state[f"{HEAD}{layer}.weight"].shape) for layer in HEAD_LAYERS]
    except KeyError as error:
        raise RewardError(
            f"{reward}: {error.args[0]} is missing in {path} or in its med_config.json. "
            "Download both again, or choose another model in Reward Loader."
        ) from error

    def make_vision() -> Any:
        from transformers import BlipVisionConfig, BlipVisionModel

        return BlipVisionModel(BlipVisionConfig(**vision))

    def make_text() -> Any:
        from transformers import BlipTextConfig, BlipTextModel

        return BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)

    def make_head() -> torch.nn.Module:
        layers = [torch.nn.Linear(size_in, size_out) for size_out, size_in in widths]
        return torch.nn.Sequential(OrderedDict(zip(map(str, HEAD_LAYERS), layers, strict=True)))

    parts = []
    for make, name_in_file, prefix, precision in (
        (make_vision, _vision_name, VISION, dtype),
        (make_text, TEXT.__add__, TEXT, dtype),
        (make_head, HEAD.__add__, HEAD, torch.float32),
    ):
        part = filled(make, state, name_in_file, precision, path, reward)
        check_used(part, state, name_in_file, prefix, path, reward)
        parts.append(part)
    return Blip(*parts).eval()


def _vision_name(name: str) -> str:
    for ours, theirs in _VISION_NAMES:
        name = name.replace(ours, theirs)
    return VISION + name


def _vision_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """BlipVisionConfig's fields, from the shapes; the eps is that of BLIP's ViT (1e-6)."""
    width = state[f"{VISION}cls_token"].shape[-1]
    patch = state[f"{VISION}patch_embed.proj.weight"].shape[-1]
    patches = state[f"{VISION}pos_embed"].shape[1] - 1
    return {
        "hidden_size": width,
        "intermediate_size": state[f"{VISION}blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len({key for key in state if _is_block(key)}),
        "num_attention_heads": max(1, width // ATTENTION_WIDTH),
        "image_size": math.isqrt(patches) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attn_implementation": "eager",
    }


def _is_block(key: str) -> bool:
    return key.startswith(f"{VISION}blocks.") and key.endswith(".norm1.weight")


def _text_sizes(config: Mapping[str, Any], vision_width: int) -> dict[str, Any]:
    """BlipTextConfig's fields; is_decoder is what transformers calls having cross-attention."""
    fields = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
        "pad_token_id",
    )
    return {
        **{field: config[field] for field in fields},
        "encoder_hidden_size": vision_width,
        "is_decoder": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "sep_token_id": None,
        "attn_implementation": "eager",
    }
