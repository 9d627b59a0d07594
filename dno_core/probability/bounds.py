"""The paper's concentration bounds: how far rows of noise stray from iid Gaussian rows.

Tang et al. (ICML 2025), section 4. Rows of k numbers are held as columns Y^T [k,m]: what belongs
to one column lies together in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2 = math.log(2)


@dataclass(frozen=True)
class RowStatistics:
    """For every image and arrangement: column means, M2's eigenpair, and both log bounds.

    `mean` [B,P,k]; `value` [B,P] the eigenvalue of Y^T Y / m - I largest in size, `vector`
    [B,P,k] its eigenvector (both may be 0 where p2 is inactive); `log_p1`, `log_p2` [B,P]: log of
    the paper's p1 and p2, at most 0. `m`: the number of rows.
    """

    mean: Tensor
    value: Tensor
    vector: Tensor
    log_p1: Tensor
    log_p2: Tensor
    m: int

    @property
    def lowest(self) -> Tensor:
        """The smaller log bound of every arrangement: [B,P]."""
        return torch.minimum(self.log_p1, self.log_p2)

    @property
    def terms(self) -> Tensor:
        """-log(p1/2) - log(p2/2) of every arrangement: [B,P]."""
        return 2 * LOG_2 - self.log_p1 - self.log_p2

    def awake(self) -> Tensor:
        """Where either bound is active, so that the terms have a gradient: bool [B,P]."""
        return self.log_p1 + self.log_p2 < 0

    def slope(self) -> tuple[Tensor, Tensor]:
        """A [B,P,k,k] and s [B,P,k]: the terms' gradient is A Y^T + s, and 0 while inactive.

        With (w, u) M2's eigenpair and e = sqrt(1+M2) - 1 - sqrt(k/m):
            d(-log p1)/dY = mean / k in every row,   d(-log p2)/dY = e / sqrt(1+M2) sign(w) Y u u^T.
        """
        shift = self.mean / self.mean.shape[2] * (self.log_p1 < 0).unsqueeze(2)
        size = self.value.abs()
        pull = _excess(size, self.mean.shape[2], self.m) / torch.sqrt(1 + size)
        pull = pull * self.value.sign() * (self.log_p2 < 0)
        return pull[..., None, None] * self.vector.unsqueeze(3) * self.vector.unsqueeze(2), shift


def row_statistics(columns: Tensor) -> RowStatistics:
    """Statistics of the rows whose columns are Y^T [B,P,k,m]."""
    m = columns.shape[3]
    return bounds(columns.mean(3), columns @ columns.mT / m, m)


def bounds(mean: Tensor, product: Tensor, m: int) -> RowStatistics:
    """Both bounds of m rows, from their column means [B,P,k] and Y^T Y / m [B,P,k,k].

    M1 = || mean of rows ||,   log p1 = min(-m M1^2 / 2k, -log 2) + log 2
    M2 = || Y^T Y / m - I ||,  log p2 = min(-m max(sqrt(1+M2) - 1 - sqrt(k/m), 0)^2 / 2, -log 2)
                                        + log 2
    """
    k = mean.shape[2]
    value, vector = _largest_eigenpair(product, k, m)
    log_p1 = (-m * mean.square().sum(2) / (2 * k)).clamp(max=-LOG_2) + LOG_2
    log_p2 = (-m * _excess(value.abs(), k, m).square() / 2).clamp(max=-LOG_2) + LOG_2
    return RowStatistics(mean, value, vector, log_p1, log_p2, m)


def _excess(size: Tensor, k: int, m: int) -> Tensor:
    return (torch.sqrt(1 + size) - 1 - math.sqrt(k / m)).clamp_min(0)


def _largest_eigenpair(product: Tensor, k: int, m: int) -> tuple[Tensor, Tensor]:
    """Of every symmetric [k,k] matrix minus I: the eigenvalue largest in size, and its vector.

    On a CPU both are left 0 where even the Frobenius norm, which is no smaller, is too small for
    p2 to become active: most matrices of Gaussian noise.
    """
    work = product.cpu() if product.device.type == "mps" else product
    excess = work - torch.eye(k, dtype=work.dtype, device=work.device)
    if work.device.type != "cpu":
        return _eigenpair(excess)
    wakes_at = (1 + math.sqrt(k / m) + math.sqrt(2 * LOG_2 / m)) ** 2 - 1
    large = torch.linalg.matrix_norm(excess) > 0.999 * wakes_at
    value, vector = work.new_zeros(work.shape[:2]), work.new_zeros(work.shape[:3])
    value[large], vector[large] = _eigenpair(excess[large])
    return value.to(product), vector.to(product)


def _eigenpair(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(symmetric)
    pick = values.abs().argmax(-1, keepdim=True)
    vector = vectors.gather(-1, pick.unsqueeze(-2).expand(*vectors.shape[:-1], 1)).squeeze(-1)
    return values.gather(-1, pick).squeeze(-1), vector
