"""Spectral whitening: Gaussian noise has the same mean power in every block of frequencies.

After arXiv 2602.08646 and 2509.07027; the blocks are ours. A 2-D transform for every step and
channel, frequencies gathered in a grid of blocks over (|f_y|, |f_x|), so that each block holds
its own conjugates and what is scaled block by block stays real.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .regularizers import Regularizer

Target = Literal["step", "gradient"]
TARGETS: tuple[Target, ...] = ("step", "gradient")

LEAST_FREQUENCIES = 64
"""Numbers a block holds at least, so that plain noise has a mean power near 1 in each."""

LEAST_MEANS = 16
"""With this many means (steps times channels) they form a block of their own."""

FLOOR = 1e-6
"""Mean power below which a block is not lifted any further."""


@dataclass(frozen=True)
class SpectralWhitening(Regularizer):
    """Holds noise [N,B,..,h,w] to unit mean power in blocks of frequencies.

    `target` "step": the noise itself is whitened after every step, a projection (twice is once).
    "gradient": the direction is, with every noise's norm kept: still an ascent direction, in
    which no frequency runs ahead; nothing holds the noise then but that. `blocks`: the grid has
    up to blocks x blocks; fewer where a block would hold under LEAST_FREQUENCIES numbers.

    It bounds power, not signs: a pattern of the right power in every block passes.
    Raises ValueError for noise without two spatial dimensions.
    """

    target: Target = "step"
    blocks: int = 4

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"The target '{self.target}' is unknown. Use one of {TARGETS}.")
        if self.blocks < 1:
            raise ValueError(f"{self.blocks} blocks cannot hold the frequencies. Use 1 or more.")

    def precondition(self, gradient: Tensor) -> Tensor:
        if self.target != "gradient":
            return gradient
        tiny = torch.finfo(gradient.dtype).tiny ** 0.5  # its inverse must be finite, too
        norm = _norm_of_noises(gradient)
        size = math.sqrt(gradient[0, 0].numel())
        white = whiten(gradient * (size / norm.clamp_min(tiny)), self.blocks)
        return white * (norm / _norm_of_noises(white).clamp_min(tiny))

    def project(self, z: Tensor) -> Tensor:
        return whiten(z, self.blocks) if self.target == "step" else z


def whiten(z: Tensor, blocks: int) -> Tensor:
    """Noise [N,B,..,h,w] with every block of frequencies scaled to unit mean power.

    A block belongs to one step and channel. The means of all steps and channels of an image are
    one more block, where there are enough of them; else they count among the lowest.
    """
    if z.ndim < 5:
        raise ValueError(
            f"Spectral whitening needs noise with height and width, and got {z.ndim - 2} "
            "dimensions an image. Use the permutation regularizer."
        )
    *leading, height, width = z.shape
    block, own_mean = _blocks(height, width, blocks, z), z[:, 0, ..., 0, 0].numel() >= LEAST_MEANS
    count = int(min(blocks, _fitting(height, width))) ** 2 + 1
    if own_mean:
        block = block.clone()
        block[0] = count - 1
    spectrum = torch.fft.fft2(z, norm="ortho").flatten(-2)
    power = spectrum.real.square() + spectrum.imag.square()
    summed = power.new_zeros(*leading, count).index_add_(-1, block, power)
    mean = summed / torch.bincount(block, minlength=count).clamp_min(1)
    if own_mean:
        means = power[..., 0].movedim(1, 0).flatten(1).mean(1)
        mean[..., -1] = means.view(1, -1, *[1] * (z.ndim - 4))
    scale = mean.clamp_min(FLOOR).rsqrt().index_select(-1, block)
    return torch.fft.ifft2((spectrum * scale).unflatten(-1, (height, width)), norm="ortho").real


def _blocks(height: int, width: int, blocks: int, like: Tensor) -> Tensor:
    """The block of every frequency [h w]: rectangles of equal sides over (|f_y|, |f_x|)."""
    side = min(blocks, _fitting(height, width))
    places = [
        (torch.fft.fftfreq(length, device=like.device).abs() * 2 * side).long().clamp(max=side - 1)
        for length in (height, width)
    ]
    return (places[0][:, None] * side + places[1]).flatten()


def _fitting(height: int, width: int) -> int:
    return max(1, math.isqrt(height * width // LEAST_FREQUENCIES))


def _norm_of_noises(z: Tensor) -> Tensor:
    """The norm of every step's noise of every image, shaped to divide z by."""
    return z.flatten(2).norm(dim=2).view(*z.shape[:2], *[1] * (z.ndim - 2))
