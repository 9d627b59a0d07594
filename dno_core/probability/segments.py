"""Structured permutations: whole segments of the noise are permuted, not single numbers.

The noise is cut into G segments of L numbers, Z [G,L]. An arrangement deals the segments out to
rows of k; all L numbers of a segment move together. Then the column sums and the Gram matrix of
every arrangement are sums of entries of s = Z 1 and S = Z Z^T, so that one matrix product serves
all arrangements; so does one more for the gradient, W Z + w 1^T. Any fixed reordering leaves iid
Gaussian noise iid: p1 and p2 bound what they bound under uniform permutations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from .bounds import RowStatistics, bounds
from .permutations import draw_order

SEGMENTS = 64
"""G for large noise; smaller noise is cut into at most sqrt(n) segments."""

LEAST_ROWS = 4
"""Fewer rows of segments than this leave too few arrangements: G must be at least 4 k."""

VIEWS = 8
"""Ways of cutting that the arrangements are spread over."""

LEAST_REPEATS = 16
"""An interleaved cut runs over the noise at least this often, so that little is left over."""


def segment_count(n: int, k: int) -> int:
    """G, a multiple of k, for n numbers in rows of k; 0 where n is too small to be cut."""
    count = min(max(SEGMENTS, LEAST_ROWS * k), math.isqrt(n)) // k * k
    return count if count >= LEAST_ROWS * k else 0


@dataclass(frozen=True)
class View:
    """One way of cutting [B,n] into segments, and the arrangements tried with it.

    From `start` on (cyclically) the noise goes out in pieces of `piece` numbers, to one segment
    after another, `repeats` times around; with an `order` the noise is permuted by it before.
    `rows` [P,g,k]: the segments that share a row, for every arrangement.
    """

    piece: int
    repeats: int
    start: int
    rows: Tensor
    order: Tensor | None

    @property
    def length(self) -> int:
        return self.piece * self.repeats

    def cut(self, flat: Tensor) -> Tensor:
        """Z [B,G,L] of noise [B,n]; what does not fill a turn is left out."""
        segments = self.rows[0].numel()
        used = segments * self.length
        if self.order is not None:
            return flat.index_select(1, self.order).view(len(flat), segments, -1)
        turned = flat.roll(-self.start, 1)[:, :used]
        pieces = turned.view(len(flat), self.repeats, segments, self.piece)
        return pieces.transpose(1, 2).reshape(len(flat), segments, self.length)

    def sew(self, parts: Tensor, flat: Tensor) -> None:
        """Add segments [B,G,L] to the numbers of `flat` [B,n] that they were cut from."""
        if self.order is not None:
            index = self.order.long().expand(len(flat), -1)
            flat.scatter_add_(1, index, parts.flatten(1))
            return
        pieces = parts.view(*parts.shape[:2], self.repeats, self.piece)
        turned = pieces.transpose(1, 2).reshape(len(flat), -1)
        head = min(turned.shape[1], flat.shape[1] - self.start)
        flat[:, self.start : self.start + head] += turned[:, :head]
        flat[:, : turned.shape[1] - head] += turned[:, head:]


@dataclass(frozen=True)
class SegmentPermutations:
    """`count` arrangements of n numbers by whole segments, keyed by `seed`.

    They are spread over several views: one of permuted noise, where segments are random samples
    of it; one of contiguous segments; and interleaved ones, whose segments hold every G-th piece
    of 1, 2, 4 .. numbers. In the latter two, every other arrangement is uniform over segments
    and the rest pair up segments at one distance: they add up a correlation that numbers at one
    lag have everywhere, of which uniform permutations see next to nothing.
    """

    n: int
    k: int
    count: int
    seed: int
    device: torch.device

    def statistics(self, flat: Tensor, k: int) -> Iterator[RowStatistics]:
        """Row statistics of noise [B,n], one view after another."""
        for view in self.views:
            yield _statistics(view, view.cut(flat), k)

    def penalty(self, flat: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The sum of -log(p1/2) - log(p2/2) over the arrangements [B], and its gradient [B,n]."""
        total, gradient = flat.new_zeros(flat.shape[0]), torch.zeros_like(flat)
        for view in self.views:
            segments = view.cut(flat)
            found = _statistics(view, segments, k)
            total += found.terms.sum(1)
            if flat.device.type == "cpu" and not bool(found.awake().any()):
                continue  # elsewhere asking would be a host round trip
            weights, shift = _segment_slope(view, found)
            view.sew(torch.baddbmm(shift.unsqueeze(2), weights, segments), gradient)
        return total, gradient

    @cached_property
    def views(self) -> tuple[View, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        home = self.device if self.device.type == "cuda" else torch.device("cpu")
        at_home = torch.Generator(home).manual_seed(self.seed)
        segments = segment_count(self.n, self.k)
        length = self.n // segments
        views = []
        for index, piece in enumerate(self._pieces(length, generator)):
            share = len(range(index, self.count, VIEWS))
            if share == 0:
                continue
            permuted = piece == 0
            rows = _uniform_rows(share, segments, self.k, generator)
            if not permuted:
                lagged = _lagged_rows(share // 2, segments, self.k, generator)
                rows = torch.cat([lagged, rows[share // 2 :]])
            start = int(torch.randint(self.n, (), generator=generator))
            order = None
            if permuted:
                order = draw_order(self.n, at_home)[: segments * length].to(self.device)
            piece = piece or length
            views.append(View(piece, length // piece, start, rows.to(self.device), order))
        return tuple(views)

    def _pieces(self, length: int, generator: torch.Generator) -> list[int]:
        """The piece of every view, with 0 for permuted noise.

        One view is of permuted noise, one of contiguous segments, the others of pieces of a
        power of 2: always 1, the rest drawn (again, where there are few).
        """
        largest = max(1, length // LEAST_REPEATS)
        powers = [2**i for i in range(1, largest.bit_length())] or [1]
        drawn: list[int] = []
        while len(drawn) < VIEWS - 3:
            order = torch.randperm(len(powers), generator=generator).tolist()
            drawn += [powers[i] for i in order]
        return [0, length, 1, *drawn[: VIEWS - 3]]


def _uniform_rows(count: int, segments: int, k: int, generator: torch.Generator) -> Tensor:
    """int64 [count,g,k]: uniform permutations of the segments, in rows of k."""
    keys = torch.rand(count, segments, generator=generator)
    return keys.argsort(1).view(count, segments // k, k)


def _lagged_rows(count: int, segments: int, k: int, generator: torch.Generator) -> Tensor:
    """int64 [count,g,k]: rows of segments r, r + d, r + 2d .. (cyclically), each row shuffled.

    The distance d, drawn anew for every arrangement, is coprime to the number of segments.
    """
    coprime = torch.tensor([d for d in range(1, segments) if math.gcd(d, segments) == 1])
    distance = coprime[torch.randint(len(coprime), (count, 1), generator=generator)]
    first = torch.randint(segments, (count, 1), generator=generator)
    rows = ((first + distance * torch.arange(segments)) % segments).view(count, segments // k, k)
    return rows.gather(2, torch.rand(rows.shape, generator=generator).argsort(2))


def _statistics(view: View, segments: Tensor, k: int) -> RowStatistics:
    batch, count, length = segments.shape
    arrangements, m = len(view.rows), view.rows.shape[1] * length
    members = view.rows.transpose(1, 2).reshape(arrangements * k, -1)
    mean = _sums(segments.sum(2).T, members).view(arrangements, k, batch) / m
    members = _pairs(view, count).view(arrangements, -1, k * k).transpose(1, 2)
    gram = (segments @ segments.mT).flatten(1).T
    product = _sums(gram, members.reshape(arrangements * k * k, -1)) / m
    product = product.view(arrangements, k, k, batch)
    return bounds(mean.movedim(2, 0), product.movedim(3, 0), m)


def _sums(table: Tensor, members: Tensor) -> Tensor:
    """Sums [R,B] of the rows of a table [M,B] that `members` [R,g] names."""
    if table.device.type == "cpu":  # in one go, several times as fast
        return functional.embedding_bag(members, table.contiguous(), mode="sum")
    return table.index_select(0, members.flatten()).view(*members.shape, -1).sum(1)


def _segment_slope(view: View, found: RowStatistics) -> tuple[Tensor, Tensor]:
    """W [B,G,G] and w [B,G]: the gradient in the segments is W Z + w, all arrangements added."""
    matrix, shift = found.slope()
    batch, count = len(shift), view.rows[0].numel()
    arrangements, rows, k = view.rows.shape
    weights = matrix.new_zeros(count * count, batch)
    values = matrix.movedim(0, 3)[:, None].expand(arrangements, rows, k, k, batch)
    weights.index_add_(0, _pairs(view, count), values.reshape(-1, batch))
    moves = shift.new_zeros(count, batch)
    values = shift.movedim(0, 2)[:, None].expand(arrangements, rows, k, batch)
    moves.index_add_(0, view.rows.flatten(), values.reshape(-1, batch))
    return weights.T.reshape(batch, count, count), moves.T


def _pairs(view: View, count: int) -> Tensor:
    """Flat indices into a [G,G] matrix of all pairs that share a row: [P g k k]."""
    return (view.rows.unsqueeze(3) * count + view.rows.unsqueeze(2)).flatten()
