"""What a reward is: images (and what comes with them) -> one score an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


class RewardError(ValueError):
    """A reward cannot be used as asked: what happened and what to do, in two sentences."""


@dataclass(frozen=True)
class Context:
    """What the images are scored against.

    prompts: none, one for all images, or one an image. references: [R, 3, H, W] in [0, 1].
    masks: [1 or B, 1, H, W] in [0, 1].
    """

    prompts: tuple[str, ...] = ()
    references: Tensor | None = None
    masks: Tensor | None = None


class Reward(Protocol):
    """Scores images.

    scale: standard deviation of the score over plain samples (benchmarks/reward_scales.py).
    modules: what has to be on the images' device before `score` is called.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def scale(self) -> float: ...
    @property
    def differentiable(self) -> bool: ...
    @property
    def modules(self) -> tuple[torch.nn.Module, ...]: ...

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """Score float32 images [B, 3, H, W] in [0, 1]; return float32 [B], higher is better."""
        ...


@dataclass(frozen=True)
class Input:
    """One setting of a reward, as `create` takes it and as Reward Loader shows it.

    kind "folder" is a model folder: one of `choices`, or a path.
    """

    name: str
    kind: Literal["float", "int", "string", "choice", "colour", "folder"]
    default: Any
    tooltip: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False


@dataclass(frozen=True)
class Spec:
    """A reward's entry in the registry: every reward file has one, named SPEC.

    create: takes the inputs by name. prompt: the tooltip of its prompt socket, "" for no prompt.
    """

    name: str
    label: str
    unit: str
    summary: str
    create: Callable[..., Reward]
    inputs: tuple[Input, ...] = ()
    prompt: str = ""


@dataclass(frozen=True)
class PixelReward:
    """A reward that is a plain function of the pixels: images [B, 3, H, W] -> [B]."""

    name: str
    unit: str
    scale: float
    function: Callable[[Tensor], Tensor]
    differentiable: bool = True
    modules: tuple[torch.nn.Module, ...] = ()

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        return self.function(check_images(images, self.name))


def check_images(images: Tensor, reward: str) -> Tensor:
    """Return the images, in float32 at least; raise RewardError unless they are [B, 3, H, W]."""
    if images.ndim != 4 or not images.is_floating_point():
        raise RewardError(
            f"{reward}: the images are {images.dtype} {list(images.shape)}. "
            "Give float images [batch, 3, height, width] in 0..1."
        )
    if images.shape[1] != 3:
        raise RewardError(
            f"{reward}: the images have {images.shape[1]} channels. "
            "Give plain RGB: leave out alpha or depth."
        )
    return images.to(torch.promote_types(images.dtype, torch.float32))


def clamp_straight_through(x: Tensor, low: float | None, high: float | None = None) -> Tensor:
    """Clamp x to [low, high] in value; its gradient is that of x, also outside."""
    return x + (x.clamp(low, high) - x).detach()
