"""Regularizers that look at the norm of the noise alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .regularizers import Regularizer


@dataclass(frozen=True)
class NormRegularizer(Regularizer):
    """ReNO's regularizer (Eyring et al., arXiv 2406.04312): the likelihood of the norm of z.

        L_reg = |z|^2 / 2 - (n - 1) log |z| - its minimum = (n - 1) / 2 (q - 1 - log q),
        q = |z|^2 / (n - 1),   gradient z (1 - 1 / q)

    over all n numbers of an image. 0 is best; Gaussian noise has 0.5 on average, whatever n is.
    ReNO's strength is 0.01, for rewards of the size of 1. It sees no structure: noise of the
    right norm may hold anything.
    """

    gamma: float = 0.01

    def penalty(self, z: Tensor, key: int) -> tuple[Tensor, Tensor]:
        freedom = max(z[:, 0].numel() - 1, 1)
        over = ((z.square() - 1).movedim(1, 0).flatten(1).sum(1) + 1) / freedom
        over = over.clamp_min(1e-6 - 1)  # q - 1, summed without cancellation; q above 0
        value = freedom / 2 * (over - torch.log1p(over))
        return value, z * _per_image(over / (1 + over), z)


@dataclass(frozen=True)
class SphereProjection(Regularizer):
    """After every step z is scaled back to the norm sqrt(n), an image over all its n numbers.

    Gaussian noise lies within about a share 1 / sqrt(2 n) of that sphere. The projection undoes
    what a step does along the radius, so the direction is left as it is. It has no strength and
    no penalty, and sees no structure.
    """

    def project(self, z: Tensor) -> Tensor:
        norm = z.movedim(1, 0).flatten(1).norm(dim=1)
        radius = math.sqrt(z[:, 0].numel())
        scale = torch.where(norm > 0, radius / norm.clamp_min(1e-12), 1.0)
        return z * _per_image(scale, z)


def _per_image(values: Tensor, z: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (z.ndim - 2))
