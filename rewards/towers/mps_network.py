"""MPS's network: CLIP ViT-H/14 before its pooling, and the layers that read the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from .fill import check_used, filled
from .mps_cross import CrossModel, read_sizes

HEADS = 16  # of both halves of CLIP ViT-H/14
FIRST_CROSS = "cross_model.layers.0.0.fn.to_q.weight"


class Mps(torch.nn.Module):
    """clip: transformers' CLIPModel, read before its pooling; cross: MPS's own layers."""

    def __init__(self, clip: Any, cross: CrossModel) -> None:
        super().__init__()
        self.clip, self.cross = clip, cross

    def words(self, ids: Tensor) -> Tensor:
        """Token ids [B, M] -> the projected state of every token [B, M, D]."""
        states = self.clip.text_model(input_ids=ids).last_hidden_state
        projected: Tensor = self.clip.text_projection(states)
        return projected

    def forward(self, pixels: Tensor, words: Tensor, read: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S], words [B, M, D], read [B, M] -> embedding [B, D]."""
        states = self.clip.vision_model(pixel_values=pixels).last_hidden_state
        patches = self.clip.visual_projection(states)
        embeddings: Tensor = self.cross(patches, words, read)[:, 0]
        return embeddings


def build(
    state: Mapping[str, Tensor], prefix: str, dtype: torch.dtype, path: Path, reward: str
) -> Mps:
    """The network, in dtype, of the tensors whose names start with `prefix`. Raises RewardError."""
    clip_prefix, cross_prefix = f"{prefix}model.", f"{prefix}cross_model."
    try:
        config = _clip_config(state, clip_prefix)
        sizes = read_sizes(state, cross_prefix)
    except KeyError as error:
        raise RewardError(
            f"{reward}: {error.args[0]} is missing in {path}. "
            "Download it again, or choose another model in Reward Loader."
        ) from error

    def make_clip() -> Any:
        from transformers import CLIPConfig, CLIPModel

        return CLIPModel(CLIPConfig(**config))

    def cross_name(name: str) -> str:
        for ours, theirs in ((".to_words.", ".0.fn."), (".to_patches.", ".1.fn.")):
            name = name.replace(ours, theirs)
        return cross_prefix + name

    def part(make: Callable[[], Any], names: Callable[[str], str], prefix: str) -> Any:
        network = filled(make, state, names, dtype, path, reward)
        check_used(network, state, names, prefix, path, reward)
        return network

    return Mps(
        part(make_clip, clip_prefix.__add__, clip_prefix),
        part(lambda: CrossModel(sizes), cross_name, cross_prefix),
    ).eval()


def _clip_config(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """CLIPConfig's fields from the shapes; what they do not tell is that of CLIP ViT-H/14."""

    def shape(name: str) -> torch.Size:
        return state[prefix + name].shape

    def half(name: str) -> dict[str, Any]:
        first = f"{name}.encoder.layers.0.mlp.fc1.weight"
        ending = ".mlp.fc1.weight"
        return {
            "hidden_size": shape(first)[1],
            "intermediate_size": shape(first)[0],
            "num_hidden_layers": sum(
                key.startswith(f"{prefix}{name}.encoder.") and key.endswith(ending) for key in state
            ),
            "num_attention_heads": HEADS,
            "hidden_act": "gelu",
            "projection_dim": shape("text_projection.weight")[0],
        }

    patch = shape("vision_model.embeddings.patch_embedding.weight")[-1]
    patches = shape("vision_model.embeddings.position_embedding.weight")[0] - 1
    words = shape("text_model.embeddings.token_embedding.weight")[0]
    text = {
        "vocab_size": words,
        "max_position_embeddings": shape("text_model.embeddings.position_embedding.weight")[0],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    return {
        "text_config": {**half("text_model"), **text},
        "vision_config": {
            **half("vision_model"),
            "patch_size": patch,
            "image_size": math.isqrt(patches) * patch,
        },
        "projection_dim": shape("text_projection.weight")[0],
    }
