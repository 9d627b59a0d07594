"""MPS's folder: its weights (safetensors) and the tokenizer of CLIP ViT-H/14."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from ..files.checkpoint import read_weights, wrong_checkpoint
from .cache import once, stamps
from .fill import check_used, filled
from .mps_cross import CrossModel, read_sizes
from .precision import dtype_of, through
from .preprocessing import clip_preprocessing, preprocess
from .texts import TextMemory, Tokenize, Tokens, warn_of_cut
from .tokenizers import transformers_tokens
from .tower import unit

WEIGHTS = ("model.safetensors", "MPS_overall_checkpoint.safetensors", "MPS_overall_checkpoint.pth")
TOKENIZER = ("tokenizer.json", "vocab.json")
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
READ_ABOVE = 0.3  # of the likeness of the likest word; in the published evaluation
HEADS = 16  # of both halves of CLIP ViT-H/14
_FIRST_CROSS = "cross_model.layers.0.0.fn.to_q.weight"


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


@dataclass(eq=False)
class MpsModel:
    """The network behind its preprocessing and tokenizer.

    In a small random network whose scores spread by 0.8, float16 stayed within 0.02 of float32 and
    bfloat16 within 0.2, with the same gradient to a cosine of 0.9999 and 0.995.
    """

    label: str
    network: Mps = field(repr=False)
    tokenize: Tokenize = field(repr=False)
    logit_scale: float
    words: TextMemory = field(default_factory=lambda: TextMemory(kept=64), repr=False)
    ids: TextMemory = field(default_factory=TextMemory, repr=False)

    def __call__(self, images: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """exp(logit scale) cos(prompt, picture read with the prompt): [B, 3, H, W] -> [B]."""
        weight = self.network.clip.visual_projection.weight
        texts = self.words((*prompts, CONDITION), self._words).to(weight.device)
        words, condition = texts[:-1], texts[-1]
        read = likely(words, condition) > READ_ABOVE
        ends = self.ids(prompts, self._ids).argmax(dim=-1)  # the end of a text has the highest id
        size = self.network.clip.config.vision_config.image_size
        pixels = preprocess(images.to(weight.device), clip_preprocessing(size))
        context = words.to(weight.dtype)
        seen = through(lambda x: self.network(x, context, read), pixels, weight.dtype)
        whole = words[torch.arange(len(words)), ends.to(words.device)]
        return self.logit_scale * (unit(seen) * unit(whole).to(seen)).sum(dim=-1)

    def _ids(self, text: str) -> Tensor:
        tokens = self.tokenize(text)
        if text != CONDITION:
            warn_of_cut(tokens, self.label)
        return torch.tensor(tokens.ids)

    def _words(self, text: str) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            weight = self.network.clip.visual_projection.weight
            ids = self.ids((text,), self._ids).to(weight.device)
            words = self.network.words(ids)[0].cpu()
            return words.to(torch.promote_types(words.dtype, torch.float32))


def likely(words: Tensor, condition: Tensor) -> Tensor:
    """max over the condition's tokens c of (w . c), by its largest value in the text.

    words [B, M, D], condition [N, D] -> [B, M].
    """
    likeness = (words @ condition.mT).amax(dim=-1)
    return likeness / likeness.amax(dim=-1, keepdim=True)


def load_mps(folder: Path, reward: str, precision: str = "auto") -> MpsModel:
    """The model in `folder`; loaded again only when its files changed. Raises RewardError.

    precision "auto" is float32.
    """
    dtype = dtype_of(precision, reward) or torch.float32
    folder = folder.expanduser().resolve()
    files = [_file(folder, WEIGHTS, reward), _file(folder, TOKENIZER, reward)]
    key = (MpsModel, *stamps(files), dtype)
    return once(key, lambda: _load(files[0], dtype, reward))


def _file(folder: Path, names: tuple[str, ...], reward: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RewardError(
        f"{reward}: {names[0]} is missing in {folder}. "
        "Put the files of RE-N-Y/mpsv1 and the tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K "
        "there, or choose the download in Reward Loader."
    )


def _load(weights: Path, dtype: torch.dtype, reward: str) -> MpsModel:
    state = read_weights(weights, reward)
    first = next((name for name in state if name.endswith(_FIRST_CROSS)), None)
    if first is None:
        raise wrong_checkpoint(weights, reward, "MPS's weights", state)
    network = _build(state, first.removesuffix(_FIRST_CROSS), dtype, weights, reward)
    limit = network.clip.config.text_config.max_position_embeddings
    tokenize = _padded(_tokenizer(weights.parent, reward), limit)
    scale = math.exp(float(network.clip.logit_scale))
    return MpsModel(weights.parent.name, network, tokenize, scale)


def _padded(tokenizer: Any, limit: int) -> Tokenize:
    """Filled up to the limit, as the words of the padding are read as well."""
    tokenize = transformers_tokens(tokenizer, limit, False)

    def padded(text: str) -> Tokens:
        tokens = tokenize(text)
        return tokens._replace(
            ids=tokens.ids + [tokenizer.pad_token_id] * (limit - len(tokens.ids))
        )

    return padded


def _build(
    state: Mapping[str, Tensor], prefix: str, dtype: torch.dtype, path: Path, reward: str
) -> Mps:
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


def _tokenizer(folder: Path, reward: str) -> Any:
    import transformers

    kind = getattr(transformers, "CLIPTokenizerFast", None) or transformers.CLIPTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RewardError(
            f"{reward}: the tokenizer in {folder} cannot be read ({error}). "
            "Put the tokenizer files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K there."
        ) from error
