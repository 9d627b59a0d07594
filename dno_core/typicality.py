"""P(z), how typical the noise is, and where it stands among plain Gaussian draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from .permutations import Permutations, lowest_log_p

MEASURE_SEED = 20250711
"""Key of the one fixed set of permutations that P(z) is always measured with."""

TYPICAL = 0.01
"""Typical noise lies above this quantile of the null distribution of P(z)."""

NULL_DRAWS = 500
NULL_NUMBERS = 8_192
"""Cap on the numbers per simulated draw: m M1^2 and m M2^2 are free of m for large m."""


@dataclass(frozen=True)
class TypicalityReading:
    """Per image [B], on the noise's device: log P(z), and its quantile in [0, 1] among the null."""

    log_p: Tensor
    quantile: Tensor

    @property
    def typical(self) -> Tensor:
        return self.quantile > TYPICAL


@dataclass(frozen=True)
class Typicality:
    """Measures P(z) of noise [N,B,...]: Tang et al. section 4, as a percentile of its null.

    P(z) is a minimum over many arrangements, a score and no probability: only its place in the
    distribution that Gaussian noise itself has means something (the quantile).
    """

    k: int = 4
    permutations: int = 100
    _kept: dict[tuple[int, torch.device], Permutations] = field(
        default_factory=dict, repr=False, compare=False
    )

    @torch.no_grad()
    def __call__(self, z: Tensor) -> TypicalityReading:
        flat = flatten(z).float()
        key = (flat.shape[1], flat.device)
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = Permutations(*self._key(flat), keep=True)
        log_p = lowest_log_p(flat, self.k, self._kept[key])
        null = null_distribution(flat.shape[1], self.k, self.permutations).to(log_p)
        below = torch.searchsorted(null, log_p.contiguous(), right=True)
        return TypicalityReading(log_p, below.to(log_p.dtype) / len(null))

    def _key(self, flat: Tensor) -> tuple[int, int, int, torch.device]:
        return flat.shape[1], self.permutations, MEASURE_SEED, flat.device


def flatten(z: Tensor) -> Tensor:
    """Noise [N,B,...] as one row of n numbers an image: [B,n]."""
    return z.movedim(1, 0).flatten(1)


def null_distribution(n: int, k: int, permutations: int, draws: int = NULL_DRAWS) -> Tensor:
    """Sorted log P of `draws` iid Gaussian vectors of n numbers: float32 [draws] on the CPU.

    Simulated once for each (n, k, b) and kept; above `NULL_NUMBERS` numbers the distribution no
    longer depends on n and is simulated there.
    """
    return _simulated_null(min(n, NULL_NUMBERS), k, permutations, draws)


@lru_cache(maxsize=16)
def _simulated_null(numbers: int, k: int, permutations: int, draws: int) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(MEASURE_SEED + 1)
        orders = Permutations(numbers, permutations, MEASURE_SEED, torch.device("cpu"), keep=True)
        chunks = math.ceil(draws / 50)
        lows = [
            lowest_log_p(torch.randn(50, numbers, generator=generator), k, orders)
            for _ in range(chunks)
        ]
        return torch.cat(lows)[:draws].sort().values
