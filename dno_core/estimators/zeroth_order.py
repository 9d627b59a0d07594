"""Zeroth-order estimators: gradients from values of the objective alone.

Tang et al. (ICML 2025), section 4.3. With xi_j ~ N(0, I), scale mu and x = M(z):

    ZO-SGD    g_z = mean_j (r(M(z + mu xi_j)) - r(M(z))) / mu * xi_j
    Hybrid-1  g_x = mean_j (r(x + mu xi_j) - r(x)) / mu * xi_j;                  g_z = J^T g_x
    Hybrid-2  x_j = M(z + mu xi_j);  g_x ~ sum_j (r(x_j) - r(x)) (x_j - x);      g_z = J^T g_x

J is the Jacobian of M. Antithetic probes come in pairs z + mu xi, z - mu xi and replace every
difference by the central one, half of that between the two: what is even in xi, the curvature
first of all, cancels. Where the objective is nearly straight over a step of mu, one-sided probes
see twice as many directions for the same cost and do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor

from ..objective import Term
from ..problem import Evaluation, Problem
from .probes import BlackBox, Difference, black_box, directions, noise_differences

Combination = Literal["least squares", "sum"]
Scaling = Literal["fit", "unit"]

RIDGE = 0.1
"""Share of a probe's mean square that its own noise is held to be, in the least squares."""


def every_term(term: Term) -> bool:
    return True


@dataclass(frozen=True)
class Probing:
    """How the objective is probed.

    `probes`: evaluations of the objective an iteration, beside the one at z; antithetic ones come
    in pairs, so an odd number is rounded up. `scale`: mu. `probe_batch`: how many run side by
    side (0: as many as memory allows). Raises ValueError for less than one probe or a scale that
    is not above 0.
    """

    probes: int = 8
    scale: float = 0.1
    antithetic: bool = False
    probe_batch: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"{self.probes} probes cannot show a slope. Ask for at least 1.")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"Probes at scale {self.scale} do not move. Set it above 0.")

    @property
    def count(self) -> int:
        """Directions xi that are drawn."""
        return (self.probes + 1) // 2 if self.antithetic else self.probes

    @property
    def evaluations(self) -> int:
        return 2 * self.count if self.antithetic else self.count

    def differentiates(self, terms: Sequence[Term]) -> bool:
        return False

    def exact(self, terms: Sequence[Term]) -> bool:
        return False


@dataclass(frozen=True)
class NoiseProbing(Probing):
    """Probes of the noise: each is one more run of the model. `gaussian` rescales them."""

    gaussian: bool = True

    def runs(self, terms: Sequence[Term]) -> int:
        return self.evaluations

    def differences(
        self, box: BlackBox, z: Tensor, image: Tensor, key: int
    ) -> Iterator[Difference]:
        return noise_differences(
            box,
            z,
            image,
            key,
            count=self.count,
            scale=self.scale,
            antithetic=self.antithetic,
            gaussian=self.gaussian,
            probe_batch=self.probe_batch,
        )


@dataclass(frozen=True)
class ZoSgd(NoiseProbing):
    """ZO-SGD: no graph is ever built, neither of the model nor of the decoder or the reward.

    With `gaussian`, probes are (z +- mu xi) / s, s = sqrt(1 + mu^2): Gaussian where z is. A linear
    f moves by a . xi mu / s, so the estimate is multiplied by s and stays unbiased; the offset
    a . z (1 / s - 1) of one-sided probes has mean zero against xi, and cancels in pairs.
    """

    probes: int = 64

    def pulls(self, terms: Sequence[Term]) -> bool:
        return False

    @torch.no_grad()
    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        box = black_box(problem, evaluation, every_term)
        total = torch.zeros_like(z)
        if box is None:
            return total
        found = self.differences(box, z, evaluation.image, key)
        for xi, gain, _ in found:
            total += gain.to(z).view(1, -1, *[1] * (z.ndim - 2)) * xi
        stretch = math.sqrt(1 + self.scale**2) if self.gaussian else 1.0
        return total * (stretch / (self.scale * self.count))


@dataclass(frozen=True)
class Hybrid1(Probing):
    """Hybrid-1: the reward is probed around the image, which costs no run of the model; decoder
    and sampler are then differentiated. mu is in pixel values.

    Probes are clamped to [0, 1], as everything that is scored. For a linear reward a . x that
    leaves E[g_i] = a_i p_i, p_i = P(0 < x_i + mu xi_i < 1) (Stein's lemma), down to a half for a
    burnt-out pixel; p_i is known, divided out, and the estimate is unbiased.
    """

    probes: int = 64
    scale: float = 0.05
    antithetic: bool = True  # noise makes most pictures worse: what is even in xi would drown it

    def runs(self, terms: Sequence[Term]) -> int:
        return 0

    def pulls(self, terms: Sequence[Term]) -> bool:
        return True

    @torch.no_grad()
    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        box = black_box(problem, evaluation, every_term)
        if box is None:
            return torch.zeros_like(z)
        return problem.gradient(z, evaluation, self.image_gradient(box, evaluation.image, key))

    def image_gradient(self, box: BlackBox, image: Tensor, key: int) -> Tensor:
        """g_x [B,3,H,W], an unbiased estimate where the objective is linear in the image."""
        total = torch.zeros_like(image)
        for (xi,) in islice(directions(image[None], key), self.count):
            gain = box((image + self.scale * xi).clamp(0, 1))
            if self.antithetic:
                gain = (gain - box((image - self.scale * xi).clamp(0, 1))) / 2
            else:
                gain = gain - box.baseline
            total += gain.to(image).view(-1, 1, 1, 1) * xi
        return total / (self.scale * self.count) / inside(image, self.scale)


@dataclass(frozen=True)
class Hybrid2(NoiseProbing):
    """Hybrid-2: every probe is an image that the model draws; the paper's best.

    `combination` of what the probes showed, dr_j the objective's gain for the move dx_j:

        "sum"              d = sum_j dr_j dx_j, the paper's
        "least squares"    d = sum_j w_j dx_j,   w = (G + lambda mean_j G_jj I)^-1 dr

    with G_jk = dx_j . dx_k and lambda = RIDGE.

    The sum tends to K a for a reward of slope a, K the covariance of the moves: it overrates what
    moves most anyway, such as the background's colour. Least squares takes K out again; it is the
    sum as lambda grows. `scaling` says how long g_x is. "fit":

        g_x = c d,   c = sum_j dr_j <d, dx_j> / sum_j <d, dx_j>^2

    explains the dr_j best, so it is a gradient in the objective's own units: beside the
    regularizer's and those of other terms its strength means what it says. "unit": norm 1 an
    image, the paper's. All probes' images are kept until the end. `gaussian` as for ZO-SGD; the
    fit needs no correction for it.
    """

    combination: Combination = "least squares"
    scaling: Scaling = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, known in ((self.combination, Combination), (self.scaling, Scaling)):
            if given not in get_args(known):
                raise ValueError(f"'{given}' is unknown here. Use one of {get_args(known)}.")

    def pulls(self, terms: Sequence[Term]) -> bool:
        return True

    @torch.no_grad()
    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        slope = self.image_gradient(problem, z, evaluation, key)
        return torch.zeros_like(z) if slope is None else problem.gradient(z, evaluation, slope)

    def image_gradient(
        self,
        problem: Problem,
        z: Tensor,
        evaluation: Evaluation,
        key: int,
        chosen: Callable[[Term], bool] = every_term,
    ) -> Tensor | None:
        """g_x [B,3,H,W] of the chosen terms; None where none of them is climbed."""
        box = black_box(problem, evaluation, chosen)
        if box is None:
            return None
        found = self.differences(box, z, evaluation.image, key)
        gains, moves = zip(*((gain, move.flatten(1)) for _, gain, move in found), strict=True)
        slope = image_slope(torch.stack(gains), torch.stack(moves), self.combination, self.scaling)
        return slope.view_as(evaluation.image)


def image_slope(gains: Tensor, moves: Tensor, combination: Combination, scaling: Scaling) -> Tensor:
    """Hybrid-2's g_x [B,P] from dr [q,B] and dx [q,B,P]; zero where nothing moved."""
    tiny = torch.finfo(moves.dtype).tiny
    shares = gains.to(moves)
    if combination == "least squares":
        gram = torch.einsum("qbp,rbp->bqr", moves, moves)
        usual = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(tiny)[:, None, None]
        ridge = RIDGE * torch.eye(len(moves), dtype=moves.dtype, device=moves.device)
        shares = _solve(gram / usual + ridge, shares.T).T
    direction = torch.einsum("qb,qbp->bp", shares, moves)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(tiny)
    if scaling == "unit":
        return direction
    along = torch.einsum("bp,qbp->qb", direction, moves)
    length = (gains.to(moves) * along).sum(0) / along.square().sum(0).clamp_min(tiny)
    return direction * length[:, None]


def _solve(matrices: Tensor, values: Tensor) -> Tensor:
    """The solution [B,q] of [B,q,q] systems; on the CPU where Apple's backend has no solver."""
    if matrices.device.type == "mps":
        return torch.linalg.solve(matrices.cpu(), values.cpu()).to(values.device)
    return torch.linalg.solve(matrices, values)


def inside(image: Tensor, scale: float) -> Tensor:
    """P(0 < x + mu xi < 1) of every pixel value x in [0, 1], xi ~ N(0, 1)."""
    width = scale * math.sqrt(2)
    return (torch.erf((1 - image) / width) + torch.erf(image / width)) / 2
