"""The networks that LPIPS looks through: AlexNet and VGG16, and their shift-tolerant forms.

The plain ones are torchvision's. The shift-tolerant ones (Ghildyal and Liu 2022, "Shift-tolerant
Perceptual Similarity Metric", arXiv 2207.13686) blur before they subsample, with a wider border;
AlexNet's first convolution has stride 1 and is blurred too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Family = Literal["AlexNet", "VGG16"]


@dataclass(frozen=True)
class Layout:
    """One of the four networks.

    taps: the layers whose output is compared, and widths: their channels. least: the smallest
    side of a picture that passes through.
    """

    family: Family
    shift_tolerant: bool
    taps: tuple[int, ...]
    widths: tuple[int, ...]
    least: int

    @property
    def label(self) -> str:
        return f"shift-tolerant {self.family}" if self.shift_tolerant else self.family


_ALEX, _VGG = (64, 192, 384, 256, 256), (64, 128, 256, 512, 512)

LAYOUTS = (
    Layout("AlexNet", False, (1, 4, 7, 9, 11), _ALEX, 31),
    Layout("AlexNet", True, (2, 6, 10, 12, 14), _ALEX, 21),
    Layout("VGG16", False, (3, 8, 15, 22, 29), _VGG, 16),
    Layout("VGG16", True, (3, 9, 17, 25, 33), _VGG, 18),
)


class Blur(nn.Module):
    """Every second pixel of a channel blurred with its 3 x 3 filter, the border mirrored."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1]
        )


def layers(layout: Layout) -> nn.Sequential:
    """The layers up to the last tap."""
    return nn.Sequential(*list(_all_layers(layout))[: layout.taps[-1] + 1])


def _all_layers(layout: Layout) -> Iterable[nn.Module]:
    if layout.shift_tolerant:
        return _alexnet() if layout.family == "AlexNet" else _vgg16()
    from torchvision import models

    whole: Any = models.alexnet if layout.family == "AlexNet" else models.vgg16
    features: nn.Sequential = whole(weights=None).features
    return features


def _alexnet() -> list[nn.Module]:
    def rectified(convolution: nn.Conv2d) -> list[nn.Module]:
        return [convolution, nn.ReLU(inplace=True)]

    def pooled(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, stride=1), Blur(channels)]

    return [
        nn.Conv2d(3, 64, 11, padding=2),
        Blur(64),
        nn.ReLU(inplace=True),
        *pooled(64),
        *rectified(nn.Conv2d(64, 192, 5, padding=2)),
        *pooled(192),
        *rectified(nn.Conv2d(192, 384, 3, padding=1)),
        *rectified(nn.Conv2d(384, 256, 3, padding=1)),
        *rectified(nn.Conv2d(256, 256, 3, padding=1)),
    ]


def _vgg16() -> list[nn.Module]:
    found: list[nn.Module] = []
    channels = 3
    for stage, (width, depth) in enumerate(zip(_VGG, (2, 2, 3, 3, 3), strict=True)):
        if stage:
            found += [nn.MaxPool2d(2, stride=1), Blur(channels)]
        for _ in range(depth):
            found += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return found
