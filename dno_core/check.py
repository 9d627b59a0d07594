"""The self-check of a run: is the gradient the slope of what was computed forward?"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Evaluation, Problem

STEP_SIZES = (0.1, 0.02, 0.5)
"""Lengths of the finite step in noise space, tried in turn until the slopes agree."""


class GradientMismatch(RuntimeError):
    """The gradient is not the slope of the forward pass."""


@torch.no_grad()
def verify_gradient(
    problem: Problem, z: Tensor, evaluation: Evaluation, gradient: Tensor, tolerance: float
) -> float:
    """Compare the gradient with a central difference along itself; return the relative error.

    The image is weighted with d objective / d image, held fixed, so that the check covers the
    sampler and the decoder, and neither the reward's curvature nor the clamp of the image. Two
    forward runs where the first step size agrees, at most six. Images of a batch are checked
    side by side; the worst counts. Raises GradientMismatch above `tolerance`, or if an image's
    gradient is exactly zero.
    """
    weight = evaluation.image_gradient
    if weight is None or not bool(weight.flatten(1).any(1).all()):
        raise GradientMismatch(
            "The reward gives no gradient for this image. Choose a differentiable reward, or "
            "check that its input is not constant."
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
    best = float("inf")
    for size in STEP_SIZES:
        ahead = _weighted(problem, z + size * direction.to(z.dtype), weight)
        behind = _weighted(problem, z - size * direction.to(z.dtype), weight)
        slope = (ahead - behind) / (2 * size)
        error = float(((slope - expected).abs() / expected).max())
        best = min(best, error)
        if best <= tolerance:
            return best
    raise GradientMismatch(
        f"The gradient is {best:.0%} off the slope that was measured: some patch or custom node "
        "changes its tensors in place or detaches them. Remove patches from the model one by "
        "one, or switch the gradient check off to go on at your own risk."
    )


def _weighted(problem: Problem, z: Tensor, weight: Tensor) -> Tensor:
    raw = problem.decoder.decode(problem.noise_map.forward(z).final)
    return (raw.cpu().double() * weight.cpu().double()).flatten(1).sum(1)
