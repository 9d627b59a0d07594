"""Small models with random weights, written by their own libraries in the formats of big ones."""

from __future__ import annotations

import io
import itertools
import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

LIMIT = 12
WORDS = ("cat", "dog", "apple", "red", "blue", "on", "photo", "depicts")
CLIP_VOCABULARY = 49408
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_clip(
    folder: Path,
    image_size: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = True,
    eos_token_id: int | None = None,
    safetensors: bool = True,
) -> Path:
    """config.json, model.safetensors (or pytorch_model.bin), tokenizer, preprocessor_config.json.

    tokenizer: with tokenizer files of its own; without, it reads CLIP's vocabulary, whose files
    are missing, as in PickScore's repository.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = _write_clip_tokenizer(folder) if tokenizer else CLIP_VOCABULARY
    text = CLIPTextConfig(
        **_SMALL,
        vocab_size=size,
        max_position_embeddings=LIMIT,
        projection_dim=16,
        bos_token_id=size - 2,
        eos_token_id=size - 1 if eos_token_id is None else eos_token_id,
        pad_token_id=size - 1,
    )
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=_clip_vision(image_size).to_dict(),
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = _varied(CLIPModel(config)).to(dtype)
    if safetensors:
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    _write_clip_processor(folder, image_size)
    return folder


def write_clip_vision(folder: Path, image_size: int = 32, seed: int = 0) -> Path:
    """The picture half of a CLIP, with its projection."""
    torch.manual_seed(seed)
    model = _varied(CLIPVisionModelWithProjection(_clip_vision(image_size)))
    model.save_pretrained(folder)
    _write_clip_processor(folder, image_size)
    return folder


def write_siglip(
    folder: Path, image_size: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """config.json, model.safetensors, spiece.model, preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    size = _write_pieces(folder / "spiece.model")
    ids = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    text = SiglipTextConfig(
        **_SMALL, **ids, vocab_size=size, max_position_embeddings=LIMIT, projection_size=32
    )
    vision = _siglip_vision(image_size)
    config = SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    torch.manual_seed(seed)
    _varied(SiglipModel(config)).to(dtype).save_pretrained(folder)
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = {"tokenizer_class": "SiglipTokenizer", "model_max_length": LIMIT, **names}
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_siglip_processor(folder, image_size)
    return folder


def write_siglip_vision(folder: Path, image_size: int = 32, seed: int = 0) -> Path:
    """The picture half of a SigLIP."""
    torch.manual_seed(seed)
    _varied(SiglipVisionModel(_siglip_vision(image_size))).save_pretrained(folder)
    _write_siglip_processor(folder, image_size)
    return folder


def write_open_clip_folder(
    folder: Path,
    seed: int = 0,
    custom_text: bool = False,
    resize_mode: str = "shortest",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """open_clip_config.json and open_clip_model.safetensors, as open_clip's hub folders are."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": LIMIT, "vocab_size": CLIP_VOCABULARY, "width": 32, "heads": 2}
    shape: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": {**text, "layers": 2},
    }
    if custom_text:
        shape["custom_text"] = True
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    preprocessing = {
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "resize_mode": resize_mode,
    }
    _write_json(
        folder / "open_clip_config.json", {"model_cfg": shape, "preprocess_cfg": preprocessing}
    )
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {
        name: each.contiguous() for name, each in _varied(model).to(dtype).state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def hps_model(seed: int = 0) -> Any:
    """open_clip's own ViT-H-14 class in small: heads of 80 and 64 as there, two of each."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, layers=2, width=160, head_width=80, patch_size=8)
    text = CLIPTextCfg(vocab_size=CLIP_VOCABULARY, width=128, heads=2, layers=2)
    torch.manual_seed(seed)
    return _varied(CLIP(24, vision, text), 0.12)


def write_hps(path: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """One .pt as HPS v2 has it (key "state_dict"), or one .safetensors, by the path's suffix."""
    state = {name: each.to(dtype) for name, each in hps_model(seed).state_dict().items()}
    if path.suffix == ".safetensors":
        save_file({name: each.contiguous() for name, each in state.items()}, path)
    else:
        torch.save({"epoch": 1, "name": "hps", "state_dict": state}, path)
    return path


def _varied(model: Any, std: float = 0.25) -> Any:
    """The libraries' own start is too small to tell pictures apart."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def _clip_vision(image_size: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(**_SMALL, image_size=image_size, patch_size=8, projection_dim=16)


def _siglip_vision(image_size: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(**_SMALL, image_size=image_size, patch_size=8)


def _write_json(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings), encoding="utf-8")


def _write_clip_processor(folder: Path, image_size: int) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    _write_json(folder / "preprocessor_config.json", settings)


def _write_siglip_processor(folder: Path, image_size: int) -> None:
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    _write_json(folder / "preprocessor_config.json", settings)


def _write_pieces(file: Path) -> int:
    """A sentencepiece model laid out as SigLIP's: padding 0, end 1, unknown 2."""
    import sentencepiece

    model = io.BytesIO()
    sentences = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, string.ascii_lowercase, string.digits]),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def _write_clip_tokenizer(folder: Path) -> int:
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    merges: list[str] = []
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts[:2] = [parts[0] + parts[1]]
            if merge not in merges:
                merges.append(merge)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merged = "\n".join(["#version: 0.2", *merges]) + "\n"
    (folder / "merges.txt").write_text(merged, encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LIMIT,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    _write_json(folder / "tokenizer_config.json", config)
    return len(tokens)
