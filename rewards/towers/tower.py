"""A frozen network behind its own preprocessing: pictures, and perhaps texts, to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .precision import HALF, through
from .preprocessing import Preprocessing, preprocess
from .texts import TextMemory, Tokenize, warn_of_cut


@dataclass(eq=False)
class Tower:
    """embed_images: preprocessed pixels [B, 3, h, w] in the model's dtype -> [B, D].

    model: frozen; in the dtype of its file or in the one asked for (`dtype`). Without one, half
    precision becomes float32 at the first use on a CPU, where half is slow.
    """

    label: str
    model: Any = field(repr=False)
    width: int
    preprocessing: Preprocessing
    embed_images: Callable[[Tensor], Tensor] = field(repr=False)
    dtype: torch.dtype | None = None

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.model,)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length embeddings [B, D] of images [B, 3, H, W] in [0, 1]; differentiable."""
        weight = self._weight()
        pixels = preprocess(images.to(weight.device), self.preprocessing)
        return unit(through(self.embed_images, pixels, weight.dtype))

    def _weight(self) -> Tensor:
        """A weight that tells the model's device and dtype."""
        weight: Tensor = next(self.model.parameters())
        if self.dtype is None and weight.device.type == "cpu" and weight.dtype in HALF:
            with torch.inference_mode(False):
                self.model.float()
            weight = next(self.model.parameters())
        return weight


@dataclass(eq=False)
class TextTower(Tower):
    """A tower that also embeds texts: embed_texts takes token ids [1, L] -> [1, D]."""

    tokenize: Tokenize = field(kw_only=True, repr=False)
    embed_texts: Callable[[Tensor], Tensor] = field(kw_only=True, repr=False)
    logit_scale: float = field(kw_only=True)
    texts: TextMemory = field(default_factory=TextMemory, kw_only=True, repr=False)

    def text_features(self, texts: tuple[str, ...]) -> Tensor:
        """Unit-length embeddings [N, D] on the CPU; each text is computed once. No gradient."""
        return self.texts(texts, self._text_feature)

    def _text_feature(self, text: str) -> Tensor:
        tokens = self.tokenize(text)
        warn_of_cut(tokens, self.label)
        with torch.inference_mode(False), torch.no_grad():
            ids = torch.tensor([tokens.ids], device=self._weight().device)
            return unit(self.embed_texts(ids))[0].cpu()


def unit(features: Tensor) -> Tensor:
    """L2-normalised, in float32 at least."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.norm(dim=-1, keepdim=True)
