"""What a reward is: images (and what comes with them) -> one score an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from .files.source import Source

Group = Literal["pixels", "prompt", "taste", "reference", "black box"]
"""What a reward looks at; Reward Loader lists them in this order."""

Kind = Literal[
    "float",
    "int",
    "bool",
    "string",
    "text",
    "choice",
    "colour",
    "model",
    "precision",
    "clip_vision",
]


class RewardError(ValueError):
    """A reward cannot be used as asked: what happened and what to do, in two sentences."""


class RewardUnavailable(RewardError, OSError):
    """Another program that a reward asks does not answer as it should.

    As an OSError, it ends a run that has won something with a warning and the best so far.
    """


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

    kind "text" is a string of several lines. "model" is a path as a string, of a file with one of
    `suffixes` or of a folder where `folders`; or one of `choices`; `sources` are what can be
    downloaded. "precision" is "auto", "float32", "float16" or "bfloat16", one widget of the node
    for all rewards. "clip_vision" is an ImageTower or None; in the graph it is a CLIP_VISION
    socket, and where it is connected the input named `model` is not looked for.
    """

    name: str
    kind: Kind
    default: Any
    tooltip: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    suffixes: tuple[str, ...] = ()
    folders: bool = False
    sources: tuple[Source, ...] = ()


PRECISION = Input(
    "precision",
    "precision",
    "auto",
    "The number format the model computes in. auto follows ComfyUI; float32 takes twice the memory "
    "and agrees with published scores to the last digit; bfloat16 is the coarsest.",
    advanced=True,
)
"""Of every reward with a network; in Reward Loader it is one widget for all of them."""


@dataclass(frozen=True)
class Spec:
    """A reward's entry in the registry: every reward file has one, named SPEC.

    create: takes the inputs by name. prompt, reference: the tooltips of its prompt socket and of
    its reference picture's, "" for none. needs_prompt: whether it refuses to run without one.
    scale_source: where its `scale` comes from: the command that measured it, or what was published.
    licence: of the weights, "" where there are none.
    """

    name: str
    label: str
    unit: str
    summary: str
    create: Callable[..., Reward]
    inputs: tuple[Input, ...] = ()
    prompt: str = ""
    needs_prompt: bool = True
    reference: str = ""
    group: Group = "pixels"
    scale_source: str = "python benchmarks/reward_scales.py"
    licence: str = ""

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            raise ValueError(f"The group '{self.group}' is unknown. Use one of {get_args(Group)}.")


@dataclass(frozen=True)
class PixelReward:
    """A reward that is a plain function of the pixels: images [B, 3, H, W] -> [B].

    masked: `function` takes a second argument, how much each pixel counts ([1 or B, 1, H, W] in
    [0, 1], or None for all alike), so that `context.masks` are heeded to the pixel.
    """

    name: str
    unit: str
    scale: float
    function: Callable[..., Tensor]
    differentiable: bool = True
    modules: tuple[torch.nn.Module, ...] = ()
    masked: bool = False

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        from .masks import region_of  # which needs what this file defines

        images = check_images(images, self.name)
        if not self.masked:
            return self.function(images)
        return self.function(images, region_of(context, images, self.name))


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
