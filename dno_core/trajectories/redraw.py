"""A run's winner and its iteration 0, drawn once more at full quality, and which was better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..objective import TermInfo, objective

FIRST, WINNER = 0, 1
"""Rows of a redraw's latents and images."""


@dataclass(frozen=True)
class RedrawNumbers:
    """What of a redraw is no tensor.

    `winners`: the iteration of every image that was drawn again, as a position in the records; the
    noise is that of the record, and so is P(z). `before` and `after`: the scores [K][B] of
    iteration 0 and of the winners. `taken`: whether an image's winner is what the run returns; else
    it is iteration 0, which was better. `seconds` spent on it.
    """

    winners: tuple[int, ...]
    taken: tuple[bool, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def best(self) -> tuple[int, ...]:
        """The position in the records of what every image's result was drawn from."""
        return tuple(
            winner if taken else 0 for winner, taken in zip(self.winners, self.taken, strict=True)
        )

    @property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        """Scores [K][B] of what the run returns."""
        pairs = zip(self.before, self.after, strict=True)
        return tuple(
            tuple(new if taken else old for old, new, taken in zip(*rows, self.taken, strict=True))
            for rows in pairs
        )


@dataclass(frozen=True)
class Redraw(RedrawNumbers):
    """What the noise of a run gives at full quality, where the iterations had fewer steps or a
    smaller VAE: `latents` [2,B,C,h,w] and `images` (uint8 [2,B,H,W,3]) of iteration 0 and of the
    winners, in this order.
    """

    latents: Tensor = field(repr=False)
    images: Tensor = field(repr=False)

    def result(self, frames: Tensor) -> Tensor:
        """[B,...] of `latents` or `images`: what the run returns."""
        rows = [WINNER if taken else FIRST for taken in self.taken]
        return torch.stack([frames[row, image] for image, row in enumerate(rows)])

    def judged(self, terms: Sequence[TermInfo], weights: Sequence[float]) -> Redraw:
        """With the better of both taken for every image, under these weights."""
        taken = at_least_as_good(terms, self.before, self.after, weights)
        return replace(self, taken=taken)


def at_least_as_good(
    terms: Sequence[TermInfo],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    weights: Sequence[float],
) -> tuple[bool, ...]:
    """Per image: whether scores `after` [K][B] have no lower objective than `before`."""
    first, then = (objective(terms, torch.tensor(rows), weights) for rows in (before, after))
    return tuple((then >= first).tolist())
