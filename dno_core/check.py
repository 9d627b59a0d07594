"""The self-check of a run: is the gradient the slope of what was computed forward?"""

from __future__ import annotations

import torch
from torch import Tensor

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
