"""A small ImageReward with random weights, in the files of the published one."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = ("a", "red", "blue", "cat", "dog", "on", "the", "moon", "photo", "of", "##s", "##ing", ",")
VISION_WIDTH, PATCH, VISION_LAYERS = 128, 16, 2
TEXT_WIDTH, TEXT_INNER, TEXT_LAYERS, TEXT_HEADS, POSITIONS = 48, 64, 2, 4, 64
HEAD = {0: (TEXT_WIDTH, 32), 2: (32, 16), 4: (16, 8), 6: (8, 4), 7: (4, 1)}


def write_blip(
    folder: Path, image_size: int = 48, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write ImageReward.pt, med_config.json and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": TEXT_WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": TEXT_INNER,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "model_type": "bert",
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": TEXT_LAYERS,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(words) + 2,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(config), encoding="utf-8")
    state = random_state(len(words) + 2, image_size, seed)
    torch.save(
        {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        folder / "ImageReward.pt",
    )
    return folder


def vocabulary() -> list[str]:
    letters = [*string.ascii_lowercase, *string.digits, *".!?-'"]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*marks, *letters, *map("##{}".format, letters), *WORDS]))


def random_state(words: int, image_size: int, seed: int) -> dict[str, Tensor]:
    """The state dict of the published network at a small size, what it does not use included."""
    shapes: dict[str, Any] = {}

    def linear(name: str, size_in: int, size_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size_out, size_in), (size_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    vision, width = "blip.visual_encoder", VISION_WIDTH
    shapes[f"{vision}.cls_token"] = (1, 1, width)
    shapes[f"{vision}.pos_embed"] = (1, (image_size // PATCH) ** 2 + 1, width)
    shapes[f"{vision}.patch_embed.proj.weight"] = (width, 3, PATCH, PATCH)
    shapes[f"{vision}.patch_embed.proj.bias"] = (width,)
    for layer in range(VISION_LAYERS):
        block = f"{vision}.blocks.{layer}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", width, 4 * width)
        linear(f"{block}.mlp.fc2", 4 * width, width)
    norm(f"{vision}.norm", width)

    text, hidden = "blip.text_encoder", TEXT_WIDTH
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (words, hidden)
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (POSITIONS, hidden)
    norm(f"{text}.embeddings.LayerNorm", hidden)
    for layer in range(TEXT_LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        for kind, source in (("attention", hidden), ("crossattention", width)):
            linear(f"{block}.{kind}.self.query", hidden, hidden)
            linear(f"{block}.{kind}.self.key", source, hidden)
            linear(f"{block}.{kind}.self.value", source, hidden)
            linear(f"{block}.{kind}.output.dense", hidden, hidden)
            norm(f"{block}.{kind}.output.LayerNorm", hidden)
        linear(f"{block}.intermediate.dense", hidden, TEXT_INNER)
        linear(f"{block}.output.dense", TEXT_INNER, hidden)
        norm(f"{block}.output.LayerNorm", hidden)
    linear("blip.vision_proj", width, 256)
    linear("blip.text_proj", hidden, 256)
    for layer, (size_in, size_out) in HEAD.items():
        linear(f"mlp.layers.{layer}", size_in, size_out)

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        state[name] = torch.randn(shape, generator=generator) * 1.5 / fan_in**0.5
        if "norm" in name.lower() and name.endswith("weight"):
            state[name] += 1
    state[f"{text}.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    return state
