"""MPS's folder: its weights (safetensors) and the tokenizer of CLIP ViT-H/14."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from ..files.checkpoint import read_weights, wrong_checkpoint
from .cache import once, stamps
from .mps_network import FIRST_CROSS, Mps, build
from .precision import dtype_of, through
from .preprocessing import clip_preprocessing, preprocess
from .reading import reading
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
        ends = self.ids(prompts, self._ids).argmax(dim=-1)  # the first of the highest id ends it
        size = self.network.clip.config.vision_config.image_size
        pixels = preprocess(images.to(weight.device), clip_preprocessing(size))
        context = words.to(weight.dtype)
        seen = through(lambda x: self.network(x, context, read), pixels, weight.dtype)
        whole = words[torch.arange(len(words), device=words.device), ends.to(words.device)]
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

    precision "auto" is float32. The published checkpoint is a pickled module, which is refused:
    WEIGHTS names what is read.
    """
    dtype = dtype_of(precision, reward) or torch.float32
    folder = folder.expanduser().resolve()
    files = [_file(folder, WEIGHTS, reward), _file(folder, TOKENIZER, reward)]
    with reading(folder, reward):
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
    first = next((name for name in state if name.endswith(FIRST_CROSS)), None)
    if first is None:
        raise wrong_checkpoint(weights, reward, "MPS's weights", state)
    prefix = first.removesuffix(FIRST_CROSS)
    network = build(state, prefix, dtype, weights, reward)
    limit = network.clip.config.text_config.max_position_embeddings
    tokenize = _padded(_tokenizer(weights.parent, reward), limit)
    scale = math.exp(float(state[f"{prefix}model.logit_scale"]))  # half precision rounds it by 1 %
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


def _tokenizer(folder: Path, reward: str) -> Any:
    import transformers

    kind = getattr(transformers, "CLIPTokenizerFast", None) or transformers.CLIPTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # `tokenizers` raises nothing narrower for a spoilt file
        raise RewardError(
            f"{reward}: the tokenizer in {folder} cannot be read ({error}). "
            "Put the tokenizer files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K there."
        ) from error
