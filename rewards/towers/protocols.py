"""What a reward asks of the network behind it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class ImageTower(Protocol):
    """A frozen network that embeds pictures.

    label: its file or folder, for messages. width: the length D of an embedding. modules: what has
    to be on the pictures' device before it is used.
    """

    @property
    def label(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def modules(self) -> tuple[torch.nn.Module, ...]: ...

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length embeddings [B, D], float32 at least, of images [B, 3, H, W] in [0, 1].

        Preprocessing included; differentiable in the images.
        """
        ...


class ImageTextTower(ImageTower, Protocol):
    """A tower that embeds texts into the same space. logit_scale: exp of the trained one."""

    @property
    def logit_scale(self) -> float: ...

    def text_features(self, texts: tuple[str, ...]) -> Tensor:
        """Unit-length embeddings [N, D] on the CPU; each text is computed once. No gradient.

        A text over the token limit is cut, with a warning that quotes what was left out.
        """
        ...
