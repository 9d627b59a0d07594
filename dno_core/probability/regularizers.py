"""Probability regularizers: what keeps the noise one that a Gaussian could have drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .arrangements import Family, arrangements, permutation_penalty
from .typicality import flatten


class Regularizer(Protocol):
    """What keeps noise z [N,B,...] Gaussian: by a penalty, on the way of the step, or after it.

    A regularizer that derives from this class needs to write only the part in which it acts.
    """

    @property
    def gamma(self) -> float:
        """Strength of the penalty, in units of the objective (so the same for every reward)."""
        return 0.0

    def penalty(self, z: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """L_reg [B] and its gradient, shaped as z. `key` seeds what is random in it."""
        return torch.zeros(z.shape[1], device=z.device), torch.zeros_like(z)

    def precondition(self, gradient: Tensor) -> Tensor:
        """The ascent direction [N,B,...] as the optimizer shall see it."""
        return gradient

    def project(self, z: Tensor) -> Tensor:
        """The noise that replaces z after a step."""
        return z


@dataclass(frozen=True)
class PermutationRegularizer(Regularizer):
    """The paper's regularizer (Tang et al., section 4.2): concentration bounds under permutations.

    `k`: numbers a row. `permutations`: b, drawn anew every iteration from `family`. Structured
    permutations move whole segments of the noise: as sharp as the published uniform ones, and
    many times as fast. Noise too small to be cut gets uniform ones.
    """

    gamma: float = 1.0
    k: int = 4
    permutations: int = 100
    family: Family = "structured"

    def penalty(self, z: Tensor, key: int) -> tuple[Tensor, Tensor]:
        flat = flatten(z)
        permuted = arrangements(
            self.family, flat.shape[1], self.k, self.permutations, key, flat.device
        )
        value, gradient = permutation_penalty(flat, self.k, permuted)
        batch_first = gradient.view(z.shape[1], z.shape[0], *z.shape[2:])
        return value, batch_first.movedim(0, 1)


@dataclass(frozen=True)
class NoRegularizer(Regularizer):
    """Off: nothing keeps the noise Gaussian, and rewards are hacked sooner."""
