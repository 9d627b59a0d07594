"""How often deviations planted into Gaussian noise are found, at a 1 % rate of false alarms.

A detector gives log P of noise [D,n]; low is suspicious. Its threshold is the 1 % quantile of its
own values on Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Detector = Callable[[Tensor], Tensor]
Rows = Callable[[int], Tensor]
"""From an arrangement's number to the indices of the numbers that share a row: [m,k]."""

FALSE_ALARMS = 0.01
ROW = 4
PART = 100
LONGEST_LAG = 1024


def shift(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """Every number larger by `size`."""
    return z + size


def scale(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """Every number larger by the share `size`."""
    return z * (1 + size)


def in_a_row(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """The first two numbers of every row of 4 correlated by `size`."""
    own = torch.arange(z.shape[1] // ROW * ROW).view(-1, ROW)
    return torch.stack([_correlated(one, own, size) for one in z])


def in_one_arrangement(
    z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]
) -> Tensor:
    """The same in the rows of one of the detector's own permutations, drawn for each noise."""
    picks = torch.randint(len(rows), (len(z),), generator=generator).tolist()
    return torch.stack([_correlated(one, rows[i], size) for one, i in zip(z, picks, strict=True)])


def at_a_lag(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """Every number mixed with the one a lag before it; lags of 1 to 1024, drawn evenly in log."""
    lags = LONGEST_LAG ** torch.rand(len(z), generator=generator)
    mixed = [one + size * one.roll(int(lag)) for one, lag in zip(z, lags.tolist(), strict=True)]
    return torch.stack(mixed) / math.sqrt(1 + size**2)


def tails(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """Numbers of unequal spread: a mixture with heavy tails, of variance 1."""
    spread = 1 + size * (torch.randn(z.shape, generator=generator).abs() - math.sqrt(2 / math.pi))
    return z * spread / spread.square().mean(1, keepdim=True).sqrt()


def drift(z: Tensor, size: float, generator: torch.Generator, rows: Sequence[Tensor]) -> Tensor:
    """A slow wave of height `size` on top, of 1 to 20 periods."""
    periods = torch.randint(1, 21, (len(z), 1), generator=generator)
    return z + size * torch.sin(2 * math.pi * periods * torch.linspace(0, 1, z.shape[1]))


PLANTED = {
    "mean shift": shift,
    "scale": scale,
    "correlation inside a row": in_a_row,
    "correlation along one permutation": in_one_arrangement,
    "correlation at a lag": at_a_lag,
    "heavy tails": tails,
    "slow drift": drift,
}


def rows_of(permuted: object, n: int) -> list[Tensor]:
    """The rows [m,4] of numbers that each of a set's arrangements compares."""
    views = getattr(permuted, "views", None)
    if views is None:
        orders = torch.cat(list(permuted.chunks(PART)))  # type: ignore[attr-defined]
        return [order[: n // ROW * ROW].view(ROW, -1).T.long() for order in orders]
    numbers = torch.arange(n, dtype=torch.float64)[None]
    found = []
    for view in views:
        segments = view.cut(numbers)[0].long()
        found += [segments[rows].movedim(1, 2).reshape(-1, ROW) for rows in view.rows]
    return found


def threshold(detector: Detector, n: int, draws: int, seed: int) -> float:
    """The FALSE_ALARMS quantile of the detector on `draws` Gaussian noises of n numbers."""
    return float(found(detector, n, draws, seed).quantile(FALSE_ALARMS))


def power(
    detector: Detector,
    edge: float,
    kind: str,
    size: float,
    n: int,
    draws: int,
    seed: int,
    rows: Sequence[Tensor],
) -> float:
    """The share of `draws` noises with a planted deviation that the detector finds."""
    generator = torch.Generator().manual_seed(seed + 1)

    def plant(z: Tensor) -> Tensor:
        return PLANTED[kind](z, size, generator, rows)

    return float((found(detector, n, draws, seed, plant) <= edge).float().mean())


def found(
    detector: Detector,
    n: int,
    draws: int,
    seed: int,
    plant: Callable[[Tensor], Tensor] = lambda z: z,
) -> Tensor:
    """The detector's values on `draws` noises, with something planted or as they are: [draws]."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.arange(draws).split(PART)
    return torch.cat(
        [detector(plant(torch.randn(len(part), n, generator=generator))) for part in parts]
    )


def table(
    detectors: Mapping[str, tuple[Detector, Sequence[Tensor]]],
    sizes: Mapping[str, Sequence[float]],
    n: int,
    draws: int,
    null_draws: int,
    seed: int = 0,
) -> list[dict[str, float | str]]:
    """A row for every kind and size: the share that each detector finds."""
    edges = {
        name: threshold(found, n, null_draws, seed + 10) for name, (found, _) in detectors.items()
    }
    return [
        {
            "planted": kind,
            "size": size,
            **{
                name: power(detector, edges[name], kind, size, n, draws, seed + 20, rows)
                for name, (detector, rows) in detectors.items()
            },
        }
        for kind, chosen in sizes.items()
        for size in chosen
    ]


def _correlated(numbers: Tensor, rows: Tensor, size: float) -> Tensor:
    result = numbers.clone()
    first, second = rows[:, 0], rows[:, 1]
    result[second] = size * numbers[first] + math.sqrt(1 - size**2) * numbers[second]
    return result
