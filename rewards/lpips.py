"""LPIPS: how near the picture comes to a reference picture, place by place, as people see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Context, Input, Reward, RewardError, Spec, check_images
from .files.catalogue import LPIPS_ALEX, LPIPS_ST_ALEX, LPIPS_ST_VGG, LPIPS_VGG
from .files.missing import missing
from .references import fitted, references_of, same
from .towers.lpips_net import SUFFIXES, Lpips, load_lpips

NAME = "lpips"
UNIT = "minus LPIPS distance, 0 (the same picture) to about -1"
SCALES = {
    "shift-tolerant AlexNet": 0.112,
    "shift-tolerant VGG16": 0.0981,
    "AlexNet": 0.112,  # estimated: as its shift-tolerant form
    "VGG16": 0.0981,
}
SOURCES = (LPIPS_ALEX, LPIPS_VGG, LPIPS_ST_ALEX, LPIPS_ST_VGG)

KEPT_BYTES = 64 * 2**20
"""Of references' features; larger ones, of VGG16, take less time to compute than memory to keep."""


class Seen(NamedTuple):
    """References [R, 3, H, W] as they were compared with, and the features of each."""

    references: Tensor
    features: list[list[Tensor]]


@dataclass(frozen=True)
class LpipsReward:
    """score = - mean over the references r of d(x, r); r is fitted to the picture's size.

    aligned: a mask crops the references as well. seen: the last references, or nothing.
    """

    network: Lpips = field(repr=False)
    name: str
    scale: float
    unit: str = UNIT
    differentiable: bool = True
    aligned: bool = True
    seen: list[Seen] = field(default_factory=list, repr=False, compare=False)

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.network,)

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a reference, or for small pictures."""
        images = check_images(images, self.name)
        height, width = images.shape[-2:]
        least = self.network.layout.least
        if min(height, width) < least:
            raise RewardError(
                f"{self.name} cannot look at a picture of {width} x {height} pixels. "
                f"Make it at least {least} x {least}, or choose another reward."
            )
        weight = next(self.network.parameters())
        pixels = images.to(weight)
        wanted = self._wanted(context, pixels)
        found = self.network.features(pixels)
        distances = torch.stack([self.network(found, each) for each in wanted])
        return -distances.mean(dim=0).to(images)

    def _wanted(self, context: Context | None, pixels: Tensor) -> list[list[Tensor]]:
        """The references' features, at the size of these pictures; those of the last are kept."""
        # Features made in inference mode could not take part in a gradient later.
        with torch.inference_mode(False), torch.no_grad():
            size = (pixels.shape[-2], pixels.shape[-1])
            references = fitted(references_of(context, pixels, self.name), size)
            if self.seen and same(self.seen[0].references, references):
                return self.seen[0].features
            self.seen.clear()
            features = [self.network.features(reference[None]) for reference in references]
            if sum(tap.nbytes for each in features for tap in each) <= KEPT_BYTES:
                self.seen.append(Seen(references, features))
            return features


def create(model: str) -> Reward:
    """model: a folder with torchvision's network and LPIPS's linear layers, or one whole file."""
    path = Path(model).expanduser()
    if not path.exists():
        source = next((each for each in SOURCES if each.name == path.name), None)
        raise missing(source, path.name, path.parent, NAME)
    network = load_lpips(path, NAME)
    label = network.layout.label
    return LpipsReward(network, f"{NAME} ({label})", SCALES[label])


SPEC = Spec(
    NAME,
    "LPIPS",
    UNIT,
    "The picture comes nearer to a reference picture: the same things at the same places.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            LPIPS_ALEX.name,
            "The network that compares, in models/dno_rewards/. AlexNet is the usual one and "
            "quick; VGG16 looks closer and needs several times the memory; the shift-tolerant "
            "ones forgive a shift by a few pixels. Which one a file holds is read off the file.",
            suffixes=SUFFIXES,
            folders=True,
            sources=SOURCES,
        ),
    ),
    reference="The picture to come near to. One of another shape is cut to the picture's shape "
    "around its middle, then resized; several pull towards what they have in common.",
    group="reference",
    scale_source="python benchmarks/reward_scales.py for the shift-tolerant networks; for AlexNet "
    "and VGG16 estimated: those of their shift-tolerant forms",
    licence="BSD-2-Clause",
)
