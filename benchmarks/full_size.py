"""Reward models with random weights, in the files of the published ones, at their size or smaller.

What a reward costs does not depend on what its weights are; what they are called and how they are
shaped does decide whether it loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from random_weights import drawn, without_weights
from torch import Tensor

HALF = torch.float16


class Vit(NamedTuple):
    """A transformer's shape. size: pixels a side, or tokens."""

    width: int
    layers: int
    heads: int
    inner: int
    size: int
    patch: int = 0


class Clip(NamedTuple):
    """activation: OpenAI trained with quick_gelu, OpenCLIP with gelu."""

    vision: Vit
    text: Vit
    embedding: int
    activation: str


CLIP_B_32 = Clip(Vit(768, 12, 12, 3072, 224, 32), Vit(512, 12, 8, 2048, 77), 512, "quick_gelu")
CLIP_L_14 = Clip(Vit(1024, 24, 16, 4096, 224, 14), Vit(768, 12, 12, 3072, 77), 768, "quick_gelu")
CLIP_H_14 = Clip(Vit(1280, 32, 16, 5120, 224, 14), Vit(1024, 24, 16, 4096, 77), 1024, "gelu")
SIGLIP_SO400M = Vit(1152, 27, 16, 4304, 384, 14)
BLIP_L_16 = (Vit(1024, 24, 16, 4096, 224, 16), Vit(768, 12, 12, 3072, 512))

MPS_HEADS, MPS_HEAD = 16, 64
CLIP_WORDS, BERT_WORDS = 49_408, 30_522
LAION_V2_LAYERS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
ALEX_WIDTHS, VGG_WIDTHS = (64, 192, 384, 256, 256), (64, 128, 256, 512, 512)
V25_LAYERS = {0: 1024, 2: 128, 4: 64, 6: 16, 8: 1}


def clip_config(clip: Clip) -> Any:
    """transformers' CLIPConfig, with CLIP's own vocabulary."""
    from transformers import CLIPConfig

    def part(vit: Vit, **more: int) -> dict[str, Any]:
        return {
            "hidden_size": vit.width,
            "num_hidden_layers": vit.layers,
            "num_attention_heads": vit.heads,
            "intermediate_size": vit.inner,
            "hidden_act": clip.activation,
            "projection_dim": clip.embedding,
            **more,
        }

    text = part(
        clip.text,
        max_position_embeddings=clip.text.size,
        vocab_size=CLIP_WORDS,
        bos_token_id=CLIP_WORDS - 2,
        eos_token_id=CLIP_WORDS - 1,
    )
    return CLIPConfig(
        text_config=text,
        vision_config=part(clip.vision, image_size=clip.vision.size, patch_size=clip.vision.patch),
        projection_dim=clip.embedding,
    )


def write_clip(folder: Path, clip: Clip) -> Path:
    """A transformers CLIPModel without tokenizer files: CLIP's own vocabulary needs none."""
    from transformers import CLIPModel

    config = clip_config(clip)
    return _write_folder(folder, config, without_weights(lambda: CLIPModel(config)))


def write_siglip_vision(folder: Path, vit: Vit) -> Path:
    """A transformers SiglipVisionModel."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=vit.width,
        num_hidden_layers=vit.layers,
        num_attention_heads=vit.heads,
        intermediate_size=vit.inner,
        image_size=vit.size,
        patch_size=vit.patch,
    )
    return _write_folder(folder, config, without_weights(lambda: SiglipVisionModel(config)))


def _write_folder(folder: Path, config: Any, shapes: Mapping[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    config.save_pretrained(folder)
    save_file(drawn(shapes, HALF), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_hps(file: Path, clip: Clip) -> Path:
    """open_clip's ViT-H-14 as HPS has it: one state dict under the key "state_dict"."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, text = clip.vision, clip.text

    def make() -> Any:
        return CLIP(
            clip.embedding,
            CLIPVisionCfg(
                layers=vision.layers,
                width=vision.width,
                head_width=vision.width // vision.heads,
                mlp_ratio=vision.inner / vision.width,
                patch_size=vision.patch,
                image_size=vision.size,
            ),
            CLIPTextCfg(
                context_length=text.size,
                vocab_size=CLIP_WORDS,
                width=text.width,
                heads=text.heads,
                layers=text.layers,
                mlp_ratio=text.inner / text.width,
            ),
        )

    torch.save({"state_dict": drawn(without_weights(make), HALF)}, file)
    return file


def write_head(file: Path, prefix: str, width: int, layers: Mapping[int, int]) -> Path:
    """Linear layers one after another; layers: each one's number and how many numbers it gives."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, out in layers.items():
        shapes[f"{prefix}{number}.weight"], shapes[f"{prefix}{number}.bias"] = (out, width), (out,)
        width = out
    torch.save(drawn(shapes, torch.float32), file)
    return file


def write_image_reward(folder: Path, vision: Vit, text: Vit) -> Path:
    """ImageReward.pt, med_config.json and a vocabulary as long as bert-base-uncased's."""
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    words += [f"word{index}" for index in range(BERT_WORDS - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = {
        "vocab_size": BERT_WORDS + 2,
        "hidden_size": text.width,
        "intermediate_size": text.inner,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (folder / "med_config.json").write_text(json.dumps(config), encoding="utf-8")
    state = drawn(_blip_shapes(vision, text), torch.float32)
    torch.save(state, folder / "ImageReward.pt")
    return folder


def write_mps(folder: Path, clip: Clip, heads: int, head: int) -> Path:
    """MPS's safetensors port: CLIP, four layers of cross attention, and CLIP's tokenizer."""
    from safetensors.torch import save_file
    from transformers import CLIPModel

    folder.mkdir(parents=True)
    _write_clip_tokenizer(folder)
    parts = without_weights(lambda: CLIPModel(clip_config(clip)))
    shapes: dict[str, Any] = {f"mps.model.{name}": tensor for name, tensor in parts.items()}
    width, inner = clip.embedding, 4 * clip.embedding
    for layer in range(4):
        words, patches = (f"mps.cross_model.layers.{layer}.{part}.fn" for part in (0, 1))
        for block in (words, patches):
            shapes[f"{block}.norm.weight"] = shapes[f"{block}.norm.bias"] = (width,)
        shapes[f"{words}.to_q.weight"] = (heads * head, width)
        shapes[f"{words}.to_kv.weight"] = (2 * head, width)
        shapes[f"{words}.to_out.weight"] = (width, heads * head)
        shapes[f"{words}.ff.0.weight"] = (2 * inner, width)
        shapes[f"{words}.ff.2.weight"] = (width, inner)
        fused = heads * head + 2 * head + 2 * inner
        shapes[f"{patches}.fused_attn_ff_proj.weight"] = (fused, width)
        shapes[f"{patches}.attn_out.weight"] = (width, heads * head)
        shapes[f"{patches}.ff_out.1.weight"] = (width, inner)
    save_file(drawn(shapes, HALF), folder / "model.safetensors")
    return folder


def _write_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary as open_clip brings it, in the files of transformers."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [word for word, _ in sorted(tokenizer.encoder.items(), key=lambda item: item[1])]
    words[-2:] = start, end
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = ["#version: 0.2", *map(" ".join, tokenizer.bpe_ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": start, "model_max_length": 77}
    config |= {"eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_lpips(folder: Path, family: str) -> Path:
    """torchvision's AlexNet or VGG16 beside LPIPS's linear layers, whose weights are positive."""
    from torchvision import models

    make, name, head, widths = {
        "AlexNet": (models.alexnet, "alexnet-owt-7be5be79.pth", "alex.pth", ALEX_WIDTHS),
        "VGG16": (models.vgg16, "vgg16-397923af.pth", "vgg.pth", VGG_WIDTHS),
    }[family]
    folder.mkdir(parents=True)
    torch.save(drawn(without_weights(make), torch.float32), folder / name)
    shapes = {f"lin{tap}.model.1.weight": (1, width, 1, 1) for tap, width in enumerate(widths)}
    linear = {name: value.abs() for name, value in drawn(shapes, torch.float32).items()}
    torch.save(linear, folder / head)
    return folder


def _blip_shapes(vision: Vit, text: Vit) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, size_in: int, size_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size_out, size_in), (size_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    top, width = "blip.visual_encoder", vision.width
    shapes[f"{top}.cls_token"] = (1, 1, width)
    shapes[f"{top}.pos_embed"] = (1, (vision.size // vision.patch) ** 2 + 1, width)
    shapes[f"{top}.patch_embed.proj.weight"] = (width, 3, vision.patch, vision.patch)
    shapes[f"{top}.patch_embed.proj.bias"] = (width,)
    for layer in range(vision.layers):
        block = f"{top}.blocks.{layer}"
        norm(f"{block}.norm1", width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.mlp.fc1", width, vision.inner)
        linear(f"{block}.mlp.fc2", vision.inner, width)
    norm(f"{top}.norm", width)

    top, hidden = "blip.text_encoder", text.width
    shapes[f"{top}.embeddings.word_embeddings.weight"] = (BERT_WORDS + 2, hidden)
    shapes[f"{top}.embeddings.position_embeddings.weight"] = (text.size, hidden)
    norm(f"{top}.embeddings.LayerNorm", hidden)
    for layer in range(text.layers):
        block = f"{top}.encoder.layer.{layer}"
        for kind, source in (("attention", hidden), ("crossattention", width)):
            linear(f"{block}.{kind}.self.query", hidden, hidden)
            linear(f"{block}.{kind}.self.key", source, hidden)
            linear(f"{block}.{kind}.self.value", source, hidden)
            linear(f"{block}.{kind}.output.dense", hidden, hidden)
            norm(f"{block}.{kind}.output.LayerNorm", hidden)
        linear(f"{block}.intermediate.dense", hidden, text.inner)
        linear(f"{block}.output.dense", text.inner, hidden)
        norm(f"{block}.output.LayerNorm", hidden)
    for number, out in LAION_V2_LAYERS.items():
        linear(f"mlp.layers.{number}", hidden, out)
        hidden = out
    return shapes
