"""A score that is an affine map of a picture's embedding: the aesthetic predictors.

Their published heads are stacks of linear layers with dropout and no nonlinearity between them, so
what they compute while scoring is one affine map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .base import Context, RewardError, check_images
from .towers.load import load_image_tower
from .towers.protocols import ImageTower

Layer = tuple[Tensor, Tensor]
"""weight [out, in] and bias [out]."""

TOWERS = {
    512: "CLIP ViT-B/32 or ViT-B/16",
    768: "CLIP ViT-L/14",
    1024: "CLIP ViT-H/14",
    1152: "SigLIP so400m",
    1280: "CLIP ViT-bigG/14",
}
"""The usual towers by the length of their embeddings."""


@dataclass(frozen=True)
class AffineMap:
    """y = weight . x + bias, with weight float64 [D]."""

    weight: Tensor
    bias: float

    def __call__(self, x: Tensor) -> Tensor:
        """[B, D] -> [B], in the dtype of x."""
        return x @ self.weight.to(x.dtype).to(x.device) + self.bias


@dataclass(frozen=True, eq=False)
class HeadReward:
    """score = head(unit-length embedding of the picture)."""

    tower: ImageTower = field(repr=False)
    head: AffineMap = field(repr=False)
    name: str
    unit: str
    scale: float
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.tower.modules

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]."""
        images = check_images(images, self.name)
        return self.head(self.tower.image_features(images)).to(images)


def layers_in(state: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Layer, ...] | None:
    """The linear layers called names, in that order; None unless the state holds them alone.

    Each has to fit the one before it, and the last to give one number.
    """
    keys = [f"{name}.{part}".removeprefix(".") for name in names for part in ("weight", "bias")]
    if set(state) != set(keys):
        return None
    layers = tuple(zip(*([state[key] for key in keys[i::2]] for i in (0, 1)), strict=True))
    shapes = [tuple(weight.shape) for weight, _ in layers]
    fits = all(len(shape) == 2 for shape in shapes) and all(
        tuple(bias.shape) == shape[:1] for (_, bias), shape in zip(layers, shapes, strict=True)
    )
    chained = fits and all(a[0] == b[1] for a, b in zip(shapes, shapes[1:], strict=False))
    return layers if chained and shapes[-1][0] == 1 else None


def fold(layers: Sequence[Layer]) -> AffineMap:
    """The affine map of linear layers one after another, multiplied out in float64.

    x -> W_n (... (W_1 x + b_1) ...) + b_n  =  (W_n ... W_1) x + (b_n + W_n b_(n-1) + ...)
    """
    with torch.inference_mode(False), torch.no_grad():
        weight, bias = (part.double() for part in layers[-1])
        for inner, offset in reversed(layers[:-1]):
            bias = bias + weight @ offset.double()
            weight = weight @ inner.double()
        return AffineMap(weight[0].clone(), float(bias))


def tower_for(
    head: AffineMap, file: Path, model: str, clip_vision: ImageTower | None, reward: str, dtype: str
) -> ImageTower:
    """The connected CLIP_VISION or the model of that path, if the head in `file` can read it."""
    tower = clip_vision if clip_vision is not None else load_image_tower(Path(model), reward, dtype)
    width = len(head.weight)
    if tower.width != width:
        raise RewardError(
            f"{reward}: {file.name} reads embeddings of length {_named(width)}, but {tower.label} "
            f"gives {_named(tower.width)}. Give it the tower it was trained on, or choose the "
            "head of this tower in Reward Loader."
        )
    return tower


def _named(width: int) -> str:
    return f"{width} ({TOWERS[width]})" if width in TOWERS else str(width)
