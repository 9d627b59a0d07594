"""The noise in its own order and under a family of permutations: L_reg and P(z).

Tang et al. (ICML 2025), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from .bounds import RowStatistics, row_statistics
from .permutations import Permutations
from .segments import SegmentPermutations, segment_count

Family = Literal["structured", "uniform"]
FAMILIES: tuple[Family, ...] = ("structured", "uniform")


class Arrangements(Protocol):
    """A fixed set of permutations of n numbers."""

    @property
    def count(self) -> int: ...

    def statistics(self, flat: Tensor, k: int) -> Iterator[RowStatistics]: ...

    def penalty(self, flat: Tensor, k: int) -> tuple[Tensor, Tensor]: ...


def arrangements(
    family: Family,
    n: int,
    k: int,
    count: int,
    seed: int,
    device: torch.device,
    keep: bool = False,
) -> Arrangements:
    """`count` permutations of a family, keyed by `seed`; noise too small to be cut gets uniform
    ones. `keep`: the set will be used more than once. Raises ValueError for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"The family '{family}' is unknown. Use one of {FAMILIES}.")
    if family == "structured" and segment_count(n, k):
        return SegmentPermutations(n, k, count, seed, device)
    return Permutations(n, count, seed, device, keep)


def lowest_log_p(flat: Tensor, k: int, permuted: Arrangements) -> Tensor:
    """log P(z) [B] of noise [B,n]: the smallest bound over its own order and all permutations.

    -inf for noise so large that its squares overflow.
    """
    lows = [row_statistics(_own_columns(flat, k)).lowest.amin(1)]
    lows += [found.lowest.amin(1) for found in permuted.statistics(flat, k)]
    return torch.nan_to_num(torch.stack(lows).amin(0), nan=-math.inf, neginf=-math.inf)


def permutation_penalty(flat: Tensor, k: int, permuted: Arrangements) -> tuple[Tensor, Tensor]:
    """L_reg [B] of noise [B,n] and its gradient [B,n], in one pass.

        L_reg = -[ log(p1/2) + log(p2/2) in its own order + mean over permutations of the same ]

    A term whose bound is inactive (p = 1) has exactly zero gradient.
    """
    columns = _own_columns(flat, k)
    own = row_statistics(columns)
    penalty, gradient = permuted.penalty(flat, k)
    share = 1 / max(permuted.count, 1)
    penalty = own.terms.sum(1) + share * penalty
    matrix, shift = own.slope()
    slope = matrix @ columns + shift.unsqueeze(3)
    gradient *= share
    gradient[:, : slope[0].numel()] += slope.mT.flatten(1)
    return penalty, gradient


def _own_columns(flat: Tensor, k: int) -> Tensor:
    used = flat.shape[1] // k * k
    return flat[:, :used].view(len(flat), 1, -1, k).mT
