"""LPIPS: the visible difference of two pictures (Zhang et al. 2018, arXiv 1801.03924), v0.1."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base import RewardError
from ..files.checkpoint import read_weights, wrong_checkpoint
from .cache import once, stamps
from .fill import filled
from .lpips_layers import LAYOUTS, Layout, layers
from .reading import reading

SUFFIXES = (".pth", ".pt", ".safetensors")
EXPECTED = (
    "a whole LPIPS network: one shift-tolerant file, or a folder with torchvision's AlexNet or "
    "VGG16 and the linear layers for it"
)

# ImageNet's mean and standard deviation, for pixels in [-1, 1]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10
_NAMES = (
    (re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias|filt)"), r"layers.\1.\2"),
    (re.compile(r"lin(\d)\.model\.1\.weight"), r"linear.\1.weight"),
)


class Lpips(nn.Module):
    """d(x, y) = sum over taps of mean over places of w . (f(x) - f(y))^2, with |f| = 1 a place."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.layers = layers(layout)
        self.linear = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in layout.widths)

    def features(self, images: Tensor) -> list[Tensor]:
        """What every tap sees in images [B, 3, H, W] in [0, 1], of unit length at each place."""
        shift, scale = (images.new_tensor(each).view(3, 1, 1) for each in (_SHIFT, _SCALE))
        x = (2 * images - 1 - shift) / scale
        found = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.layout.taps:
                found.append(x / (x.norm(dim=1, keepdim=True) + _TINY))
        return found

    def forward(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distance [B] of features of B images to those of B images, or of one."""
        parts = [
            linear((a - b).square()).mean(dim=(1, 2, 3))
            for linear, a, b in zip(self.linear, one, other, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)


def load_lpips(path: Path, reward: str) -> Lpips:
    """The network in a file or a folder of files, in float32; loaded once. Raises RewardError.

    Which network it is is read off the weights.
    """
    path = path.expanduser().resolve()
    with reading(path, reward):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise RewardError(
                f"{reward}: {path} holds no weights ({', '.join(SUFFIXES)}). "
                "Choose another model in Reward Loader, or put them there."
            )
        return once(("lpips", *stamps(files)), lambda: _load(path, files, reward))


def _load(path: Path, files: list[Path], reward: str) -> Lpips:
    read: dict[str, Tensor] = {}
    for file in files:
        read.update(read_weights(file, reward))
    state = {}
    for name, tensor in read.items():
        for pattern, ours in _NAMES:
            if pattern.fullmatch(name):
                state[pattern.sub(ours, name)] = tensor
    layout = _layout(state)
    if layout is None or "linear.0.weight" not in state:
        raise wrong_checkpoint(path, reward, EXPECTED, read)
    return filled(lambda: Lpips(layout), state, lambda name: name, torch.float32, path, reward)


def _layout(state: dict[str, Tensor]) -> Layout | None:
    """The network that the first convolution belongs to."""
    first = state.get("layers.0.weight")
    kernels = {torch.Size((64, 3, 11, 11)): "AlexNet", torch.Size((64, 3, 3, 3)): "VGG16"}
    family = kernels.get(first.shape) if first is not None else None
    shift_tolerant = any(name.endswith(".filt") for name in state)
    for layout in LAYOUTS:
        if (layout.family, layout.shift_tolerant) == (family, shift_tolerant):
            return layout
    return None
