"""Row statistics of noise under many permutations at once, and their exact gradient.

Tang et al. (ICML 2025), section 4: noise cut into m rows of k numbers is compared with what iid
Gaussian rows must look like, in its own order and under b permutations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK_NUMBERS = 32_000_000
"""Gathered numbers alive at a time on an accelerator (128 MB in float32)."""

CPU_CHUNK_NUMBERS = 1_000_000
"""The same on a CPU, where what stays in its cache is three times as fast."""

KEPT_NUMBERS = 100_000_000
"""A set of permutations up to this size is drawn once and kept (400 MB as int32)."""


@dataclass(frozen=True)
class Permutations:
    """`count` uniform permutations of n numbers, keyed by `seed`, drawn on the device in chunks."""

    n: int
    count: int
    seed: int
    device: torch.device
    keep: bool = False
    _kept: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield int32 [p, n] with p <= size; the same permutations every time."""
        if self._kept:
            yield from self._kept[0].split(size)
            return
        home = self.device if self.device.type == "cuda" else torch.device("cpu")
        generator = torch.Generator(device=home).manual_seed(self.seed)
        keep = self.keep and self.n * self.count <= KEPT_NUMBERS
        parts = []
        for first in range(0, self.count, size):
            rows = range(first, min(first + size, self.count))
            drawn = [self._draw(generator) for _ in rows]
            chunk = torch.stack(drawn).to(self.device)
            if keep:
                parts.append(chunk)
            yield chunk
        if keep and parts:
            self._kept.append(torch.cat(parts))

    def _draw(self, generator: torch.Generator) -> Tensor:
        """int32 is three times as fast to draw as int64."""
        return torch.randperm(
            self.n, generator=generator, device=generator.device, dtype=torch.int32
        )


@dataclass(frozen=True)
class RowStatistics:
    """For every image and arrangement: column means, M2's eigenpair, and both log bounds.

    `mean` [B,P,k]; `value` [B,P] the eigenvalue of Y^T Y / m - I largest in size, `vector`
    [B,P,k] its eigenvector; `log_p1`, `log_p2` [B,P]: log of the paper's p1 and p2, at most 0.
    """

    mean: Tensor
    value: Tensor
    vector: Tensor
    log_p1: Tensor
    log_p2: Tensor


def row_statistics(rows: Tensor) -> RowStatistics:
    """Statistics of row matrices Y [B,P,m,k].

    M1 = || mean of rows ||,   log p1 = min(-m M1^2 / 2k, -log 2) + log 2
    M2 = || Y^T Y / m - I ||,  log p2 = min(-m max(sqrt(1+M2) - 1 - sqrt(k/m), 0)^2 / 2, -log 2)
                                        + log 2
    """
    m, k = rows.shape[2:]
    mean = rows.mean(2)
    value, vector = _largest_eigenpair(rows.mT @ rows / m)
    floor = math.log(2)
    log_p1 = (-m * mean.square().sum(2) / (2 * k)).clamp(max=-floor) + floor
    log_p2 = (-m * _excess(value.abs(), k, m).square() / 2).clamp(max=-floor) + floor
    return RowStatistics(mean, value, vector, log_p1, log_p2)


def lowest_log_p(flat: Tensor, k: int, permutations: Permutations) -> Tensor:
    """log P(z) [B] of noise [B,n]: the smallest bound over its own order and all permutations."""
    lows = []
    for rows, _ in _arrangements(flat, k, permutations):
        found = row_statistics(rows)
        lows.append(torch.minimum(found.log_p1, found.log_p2).amin(1))
    return torch.stack(lows).amin(0)


def permutation_penalty(flat: Tensor, k: int, permutations: Permutations) -> tuple[Tensor, Tensor]:
    """L_reg [B] of noise [B,n] and its gradient [B,n], in one pass.

        L_reg = -[ log(p1/2) + log(p2/2) in its own order + mean over permutations of the same ]

    A term whose bound is inactive (p = 1) has exactly zero gradient. For row matrix Y, with
    (w, u) M2's eigenpair and e = sqrt(1+M2) - 1 - sqrt(k/m):
        d(-log p1)/dY = mean / k in every row,   d(-log p2)/dY = e / sqrt(1+M2) sign(w) Y u u^T.
    """
    penalty = flat.new_zeros(flat.shape[0])
    gradient = torch.zeros_like(flat)
    used = flat.shape[1] // k * k
    for rows, order in _arrangements(flat, k, permutations):
        found = row_statistics(rows)
        share = 1.0 if order is None else 1.0 / permutations.count
        terms = 2 * math.log(2) - found.log_p1 - found.log_p2
        penalty += share * terms.sum(1)
        if flat.device.type == "cpu" and not bool((found.log_p1 + found.log_p2 < 0).any()):
            continue  # all asleep; elsewhere asking would be a host round trip
        part = share * _row_gradient(rows, found)
        if order is None:
            gradient[:, :used] += part.flatten(1)
        else:
            # index_add_ is 100 times slower with int32
            gradient.index_add_(1, order.flatten().long(), part.flatten(1))
    return penalty, gradient


def _row_gradient(rows: Tensor, found: RowStatistics) -> Tensor:
    m, k = rows.shape[2:]
    shift = found.mean / k * (found.log_p1 < 0).unsqueeze(2)
    size = found.value.abs()
    pull = _excess(size, k, m) / torch.sqrt(1 + size) * found.value.sign() * (found.log_p2 < 0)
    matrix = pull[..., None, None] * found.vector.unsqueeze(3) * found.vector.unsqueeze(2)
    return (rows @ matrix).add_(shift.unsqueeze(2))


def _arrangements(
    flat: Tensor, k: int, permutations: Permutations
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Row matrices [B,p,m,k] and the order [p,mk] they were gathered by (None: their own)."""
    batch, n = flat.shape
    used = n // k * k
    yield flat[:, :used].view(batch, 1, -1, k), None
    limit = CPU_CHUNK_NUMBERS if flat.device.type == "cpu" else CHUNK_NUMBERS
    for chunk in permutations.chunks(max(1, limit // max(batch * n, 1))):
        order = chunk[:, :used]
        gathered = flat.index_select(1, order.flatten())
        yield gathered.view(batch, len(order), -1, k), order


def _excess(size: Tensor, k: int, m: int) -> Tensor:
    return (torch.sqrt(1 + size) - 1 - math.sqrt(k / m)).clamp_min(0)


def _largest_eigenpair(product: Tensor) -> tuple[Tensor, Tensor]:
    """Of every symmetric [k,k] matrix minus I: the eigenvalue largest in size, and its vector."""
    work = product.cpu() if product.device.type == "mps" else product
    eye = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    values, vectors = torch.linalg.eigh(work - eye)
    pick = values.abs().argmax(-1, keepdim=True)
    vector = vectors.gather(-1, pick.unsqueeze(-2).expand(*vectors.shape[:-1], 1)).squeeze(-1)
    return values.gather(-1, pick).squeeze(-1).to(product), vector.to(product)
