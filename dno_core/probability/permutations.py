"""Uniform permutations of the noise: the arrangements of the published algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .bounds import RowStatistics, row_statistics

CHUNK_NUMBERS = 32_000_000
"""Gathered numbers alive at a time on an accelerator (128 MB in float32)."""

CPU_CHUNK_NUMBERS = 1_000_000
"""The same on a CPU, where what stays in its cache is three times as fast."""

KEPT_NUMBERS = 100_000_000
"""A set of permutations up to this size is drawn once and kept (400 MB as int32)."""


@dataclass(frozen=True)
class Permutations:
    """`count` uniform permutations of n numbers, keyed by `seed`, drawn on the device in chunks.

    Row r of an arrangement holds the numbers order[r], order[m + r], .. order[(k-1) m + r].
    """

    n: int
    count: int
    seed: int
    device: torch.device
    keep: bool = False
    _kept: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def statistics(self, flat: Tensor, k: int) -> Iterator[RowStatistics]:
        """Row statistics of noise [B,n], some arrangements at a time."""
        for order in self._orders(flat, k):
            yield row_statistics(_columns(flat, order, k))

    def penalty(self, flat: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The sum of -log(p1/2) - log(p2/2) over the arrangements [B], and its gradient [B,n]."""
        total, gradient = flat.new_zeros(flat.shape[0]), torch.zeros_like(flat)
        for order in self._orders(flat, k):
            columns = _columns(flat, order, k)
            found = row_statistics(columns)
            total += found.terms.sum(1)
            matrix, shift = found.slope()
            if flat.device.type == "cpu":  # elsewhere asking would be a host round trip
                awake = found.awake().any(0).nonzero().flatten()
                if len(awake) == 0:
                    continue
                if len(awake) < len(order):
                    order, columns = order[awake], columns[:, awake]
                    matrix, shift = matrix[:, awake], shift[:, awake]
            part = (matrix @ columns).add_(shift.unsqueeze(3)).flatten(1)
            index = order.flatten().long()  # scattering by int32 is 100 times as slow
            gradient.scatter_add_(1, index.expand(len(flat), -1), part)
        return total, gradient

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
            chunk = torch.stack([draw_order(self.n, generator) for _ in rows]).to(self.device)
            if keep:
                parts.append(chunk)
            yield chunk
        if keep and parts:
            self._kept.append(torch.cat(parts))

    def _orders(self, flat: Tensor, k: int) -> Iterator[Tensor]:
        batch, n = flat.shape
        limit = CPU_CHUNK_NUMBERS if flat.device.type == "cpu" else CHUNK_NUMBERS
        for chunk in self.chunks(max(1, limit // max(batch * n, 1))):
            yield chunk[:, : n // k * k]


def draw_order(n: int, generator: torch.Generator) -> Tensor:
    """A uniform permutation of n numbers; int32, which is three times as fast to draw as int64."""
    return torch.randperm(n, generator=generator, device=generator.device, dtype=torch.int32)


def _columns(flat: Tensor, order: Tensor, k: int) -> Tensor:
    gathered = flat.index_select(1, order.flatten())
    return gathered.view(flat.shape[0], len(order), k, -1)
