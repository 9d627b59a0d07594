"""P(z), how typical the noise is, and where it stands among plain Gaussian draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from .arrangements import Arrangements, Family, arrangements, lowest_log_p

MEASURE_SEED = 20250711
"""Key of the one fixed set of permutations that P(z) is always measured with."""

TYPICAL = 0.01
"""Typical noise lies above this quantile of the null distribution of P(z)."""

NULL_DRAWS = 4_000
NULL_NUMBERS = 4_096
"""Cap on the numbers per simulated draw: m M1^2 and m M2^2 are free of m for large m."""

TAIL = 0.02
"""Below this quantile the null is an exponential in log P, fitted to the draws that lie there."""


@dataclass(frozen=True)
class TypicalityReading:
    """Where noise [N,B,...] stands among Gaussian noise; on the noise's device.

    Per image [B]: log P(z) of all its noises together and its quantile in [0, 1] among the null.
    Per noise [N,B]: the same of the noise of every step by itself. `step_low` [B]: the quantile
    of the worst step, 1 - (1 - lowest quantile)^N: among the worst steps of Gaussian noise. All
    three are None where a noise has fewer numbers than a row.
    """

    log_p: Tensor
    quantile: Tensor
    step_log_p: Tensor | None = None
    step_quantile: Tensor | None = None
    step_low: Tensor | None = None

    @property
    def typical(self) -> Tensor:
        return self.quantile > TYPICAL


@dataclass(frozen=True)
class Typicality:
    """Measures P(z) of noise [N,B,...]: Tang et al. section 4, as a quantile of its null.

    P(z) is a minimum over many arrangements, a score and no probability: only its place in the
    distribution that Gaussian noise itself has means something (the quantile). The arrangements
    are structured permutations wherever the noise is large enough for them.
    """

    k: int = 4
    permutations: int = 100
    family: Family = "structured"
    _kept: dict[tuple[int, torch.device], Arrangements] = field(
        default_factory=dict, repr=False, compare=False
    )

    @torch.no_grad()
    def __call__(self, z: Tensor) -> TypicalityReading:
        log_p, quantile = self._measure(flatten(z).float())
        steps, images = z.shape[:2]
        if z[0, 0].numel() < self.k:  # not one row
            return TypicalityReading(log_p, quantile)
        step_log_p, step_quantile = self._measure(z.flatten(2).flatten(0, 1).float())
        step_quantile = step_quantile.view(steps, images)
        worst = step_quantile.amin(0)
        if z.device.type in ("cpu", "cuda"):  # others have no float64
            worst = worst.double()
        step_low = -torch.expm1(steps * torch.log1p(-worst))
        return TypicalityReading(
            log_p, quantile, step_log_p.view(steps, images), step_quantile, step_low.to(quantile)
        )

    def _measure(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        log_p = lowest_log_p(flat, self.k, self._arrangements(flat.shape[1], flat.device))
        return log_p, quantile_of(log_p, self._null(flat.shape[1]))

    def _arrangements(self, n: int, device: torch.device) -> Arrangements:
        if (n, device) not in self._kept:
            while len(self._kept) > 1:  # one for the whole noise, one for a step's
                self._kept.pop(next(iter(self._kept)))
            self._kept[n, device] = arrangements(
                self.family, n, self.k, self.permutations, MEASURE_SEED, device, keep=True
            )
        return self._kept[n, device]

    def _null(self, n: int) -> Tensor:
        return null_distribution(n, self.k, self.permutations, family=self.family)


def flatten(z: Tensor) -> Tensor:
    """Noise [N,B,...] as one row of n numbers an image: [B,n]."""
    return z.movedim(1, 0).flatten(1)


def quantile_of(log_p: Tensor, null: Tensor) -> Tensor:
    """Where each log P stands in a sorted null distribution: quantiles in [0, 1].

    Its lower end is finer than the draws are: there log P falls off exponentially, as the bounds
    do that it is made of, at the mean excess of the draws below the TAIL quantile.
    """
    null = null.to(log_p)
    below = torch.searchsorted(null, log_p.contiguous(), right=True)
    tail = max(1, round(TAIL * len(null)))
    edge = null[tail]
    excess = (edge - null[:tail]).mean().clamp_min(1e-6)
    extrapolated = tail / len(null) * torch.exp((log_p - edge).clamp(max=0) / excess)
    return torch.where(log_p < edge, extrapolated, below.to(log_p.dtype) / len(null))


def null_distribution(
    n: int,
    k: int,
    permutations: int,
    draws: int = NULL_DRAWS,
    family: Family = "structured",
) -> Tensor:
    """Sorted log P of `draws` iid Gaussian vectors of n numbers: float32 [draws] on the CPU.

    Simulated once for each (n, k, b, family) and kept; above `NULL_NUMBERS` numbers the
    distribution no longer depends on n and is simulated there.
    """
    return _simulated_null(min(n, max(NULL_NUMBERS, 64 * k * k)), k, permutations, draws, family)


@lru_cache(maxsize=16)
def _simulated_null(numbers: int, k: int, permutations: int, draws: int, family: Family) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(MEASURE_SEED + 1)
        fixed = arrangements(
            family, numbers, k, permutations, MEASURE_SEED, torch.device("cpu"), keep=True
        )
        lows = [
            lowest_log_p(torch.randn(len(part), numbers, generator=generator), k, fixed)
            for part in torch.arange(draws).split(100)
        ]
        return torch.cat(lows).sort().values
