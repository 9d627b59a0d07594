"""The self-check of a run: is the gradient the slope of what was computed forward?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .noise_map.gradient_modes import EXACT, ModalMap
from .problem import Evaluation, Problem

FINE_STEPS = (0.1, 0.02, 0.004, 0.0008, 0.0002)
COARSE_STEPS = (0.5, 0.1, 0.02)
"""Lengths of the finite step in noise space, tried in turn until gradient and slope agree.

M(z) can turn so sharply (a background that flips its colour) that only the smallest step sees
the slope; half precision, in turn, drowns small steps in rounding.
"""

COARSE_TOLERANCE = 0.2
"""From this tolerance on the coarse steps are taken: it is one for half precision."""


class GradientMismatch(RuntimeError):
    """The gradient is not the slope of the forward pass."""


class Checked(NamedTuple):
    """What a check found. `inconclusive`: there was no slope to hold the gradient against.
    `cosine` [B] of the mode's gradient with the exact one, per image; None for the exact mode."""

    inconclusive: bool = False
    cosine: Tensor | None = None


def check_gradient(
    problem: Problem,
    z: Tensor,
    evaluation: Evaluation,
    gradient: Tensor,
    gradient_of: Callable[[Problem], Tensor],
    tolerance: float,
) -> Checked:
    """`verify_gradient` for every gradient mode: in a biased one the exact gradient is computed
    once, to be checked and to be held against the biased one.

    In the mode "linear" nothing is checked: no graph of the denoiser is ever built there, and
    there may be no memory for one. `gradient_of` gives the gradient of a problem at this
    evaluation. Raises GradientMismatch.
    """
    noise_map = problem.noise_map
    if not (isinstance(noise_map, ModalMap) and noise_map.mode.biased(len(noise_map.steps))):
        error = verify_gradient(problem, z, evaluation, gradient, tolerance)
        return Checked(error > tolerance)
    if noise_map.mode.name == "linear":
        return Checked()
    exact = gradient_of(replace(problem, noise_map=noise_map.in_mode(EXACT)))
    error = verify_gradient(problem, z, evaluation, exact, tolerance)
    return Checked(error > tolerance, image_cosine(gradient, exact))


def image_cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine [B] between two gradients [N,B,...], per image; 0 where one of them is zero."""
    return (_directions(first) * _directions(second)).sum(1)


def _directions(gradient: Tensor) -> Tensor:
    """[N,B,...] -> [B,P] of unit norm, whatever the size: squares of small numbers underflow."""
    rows = gradient.movedim(1, 0).flatten(1)
    tiny = torch.finfo(rows.dtype).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(tiny)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny)


@torch.no_grad()
def verify_gradient(
    problem: Problem, z: Tensor, evaluation: Evaluation, gradient: Tensor, tolerance: float
) -> float:
    """Compare the gradient with a central difference along itself; return the relative error.

    The image is weighted with d objective / d image, held fixed, so that the check covers the
    sampler and the decoder, and neither the reward's curvature nor the clamp of the image. Two
    forward runs where the first step size agrees, at most ten. Images of a batch are checked side
    by side, each passes at any size; the worst counts. Where the measured slope itself has not
    settled, nothing is known and the image passes.

    Raises GradientMismatch where the slope has settled and the gradient is off by more than
    `tolerance`, or where an image's gradient is exactly zero.
    """
    weight = evaluation.image_gradient
    if weight is None or not bool(weight.flatten(1).any(1).all()):
        raise GradientMismatch(
            "The reward gives no gradient for this image. Choose another reward, or the estimator "
            "'hybrid_2', which needs none."
        )
    norm = gradient.movedim(1, 0).flatten(1).norm(dim=1)
    if not bool((norm > 0).all()):
        raise GradientMismatch(
            "The gradient of the noise is exactly zero: something between reward and noise "
            "detaches it. Remove custom patches from the model one by one, or switch the "
            "gradient check off."
        )
    expected = norm.cpu().double()
    direction = gradient / norm.view(1, -1, *[1] * (gradient.ndim - 2))
    errors, slopes = torch.full_like(expected, torch.inf), []
    for size in FINE_STEPS if tolerance < COARSE_TOLERANCE else COARSE_STEPS:
        ahead = _weighted(problem, z + size * direction.to(z.dtype), weight)
        behind = _weighted(problem, z - size * direction.to(z.dtype), weight)
        slopes.append((ahead - behind) / (2 * size) / expected)
        errors = torch.minimum(errors, (slopes[-1] - 1).abs())
        if bool((errors <= tolerance).all()):
            return float(errors.max())
    settled = (slopes[-1] - slopes[-2]).abs() <= tolerance / 2
    wrong = settled & (errors > tolerance)
    if bool(wrong.any()):
        raise GradientMismatch(
            f"The gradient is {float(errors[wrong].max()):.0%} off the slope that was measured: "
            "some patch or custom node changes its tensors in place or detaches them. Remove "
            "patches from the model one by one, or switch the gradient check off to go on at "
            "your own risk."
        )
    return float(errors.max())


def _weighted(problem: Problem, z: Tensor, weight: Tensor) -> Tensor:
    raw = problem.decoder.decode(problem.noise_map.forward(z).final)
    return (raw.cpu().double() * weight.cpu().double()).flatten(1).sum(1)
