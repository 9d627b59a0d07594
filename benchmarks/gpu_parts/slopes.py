"""What a run's gradient is worth: central differences in float32, and cosines beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FINE, COARSE = (0.5, 0.1, 0.02), (1.0, 0.3, 0.1)
"""Lengths of the finite step in noise space; half precision drowns small ones."""


def probe(sizes: tuple[float, ...], around: Callable[[], Any] | None = None) -> Any:
    """An estimator for a Request that keeps the gradient and how far it is off the slopes.

    around: a context manager in which the gradient, and only it, is computed.
    """
    from contextlib import nullcontext

    from comfyui_dno.dno_core import Backpropagation, Evaluation, Problem

    class Probe(Backpropagation):
        def __init__(self) -> None:
            self.gradient: Tensor | None = None
            self.errors: dict[str, float] = {}

        def __call__(self, problem: Problem, z: Tensor, found: Evaluation, key: int) -> Tensor:
            with (around or nullcontext)():
                gradient = super().__call__(problem, z, found, key)
            self.gradient = gradient.detach().cpu().double()
            if sizes:
                self.errors = slope_errors(problem, z, found, gradient, sizes)
            return gradient

    return Probe()


@torch.no_grad()
def slope_errors(
    problem: Any, z: Tensor, found: Any, gradient: Tensor, sizes: tuple[float, ...]
) -> dict[str, float]:
    """Relative errors against central differences along the gradient itself, and along a random
    half of its numbers; the best of the step sizes each.

    The image is weighted with d objective / d image, held fixed: sampler and decoder are checked.
    """
    weight = found.image_gradient.cpu().double()

    def weighted(noise: Tensor) -> float:
        raw = problem.decoder.decode(problem.noise_map.forward(noise).final)
        return float((raw.cpu().double() * weight).sum())

    generator = torch.Generator().manual_seed(99)
    half = torch.rand(gradient.shape, generator=generator).to(gradient.device) < 0.5
    errors = {}
    for name, way in (("along", gradient), ("half", gradient * half)):
        length = float(way.double().norm())
        if length == 0:
            errors[name] = float("inf")
            continue
        direction = (way / length).to(z)
        slopes = [
            (weighted(z + size * direction) - weighted(z - size * direction)) / (2 * size)
            for size in sizes
        ]
        errors[name] = min(abs(slope / length - 1) for slope in slopes)
    return errors


def likeness(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Cosine of two gradients and the ratio of their norms."""
    a, b = found.flatten(), expected.flatten()
    norms = float(a.norm()), float(b.norm())
    return {
        "cosine": float(a @ b) / max(norms[0] * norms[1], 1e-300),
        "norm_ratio": norms[0] / max(norms[1], 1e-300),
    }
