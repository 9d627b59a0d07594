"""Search for good noise without gradients: best-of-N and random neighbours.

Both are generators that yield (z, Evaluation) of every picture they look at, the first one from
the noise they are given, and never end: the budget is the caller's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from comfyui_dno.dno_core import Evaluation, Problem

Draw = Callable[[int], Tensor]
"""Fresh noise [N,B,C,H,W] of draw 1, 2, ...; image b's depends on nothing but its seed."""

Seen = tuple[Tensor, Evaluation]


def draw_for(seeds: Sequence[int], like: Tensor) -> Draw:
    """Fresh noises shaped as `like` [N,B,...], every image's from its own seed."""

    def draw(index: int) -> Tensor:
        noises = []
        for seed in seeds:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
            noises.append(torch.randn(like[:, 0].shape, generator=generator, dtype=like.dtype))
        return torch.stack(noises, dim=1).to(like.device)

    return draw


def best_of_n(problem: Problem, z: Tensor, weights: Sequence[float], draw: Draw) -> Iterator[Seen]:
    """Plain samples one after another: the first one from z."""
    for index in itertools.count(1):
        yield z, problem.evaluate(z, weights)
        z = draw(index)


def random_neighbours(
    problem: Problem, z: Tensor, weights: Sequence[float], draw: Draw, distance: float
) -> Iterator[Seen]:
    """Zero-order search: z' = sqrt(1 - l^2) z + l xi, kept where it scores higher.

    `distance` l in (0, 1]: the neighbour is Gaussian if z is. The search of Ma et al. 2025
    (arXiv 2501.09732) with one neighbour at a time.
    """
    best = problem.evaluate(z, weights)
    yield z, best
    top = best.objective
    for index in itertools.count(1):
        near = math.sqrt(1 - distance**2) * z + distance * draw(index)
        found = problem.evaluate(near, weights)
        yield near, found
        better = found.objective > top
        top = torch.where(better, found.objective, top)
        z = torch.where(better.view(1, -1, *[1] * (z.ndim - 2)), near, z)
