"""Guidance on the predicted x0: the reward's gradient moves every sampling step, not the noise.

Universal guidance (Bansal et al. 2023, arXiv 2302.07121, "forward" part, with self-recurrence)
and LGD-MC (Song et al. 2023, ICML, loss-guided diffusion). With x the latent in sigma space, eps
its noise and alpha_bar = 1 / (1 + sigma^2), their

    eps' = eps - s sqrt(1 - alpha_bar) grad_{z_t} r(x0(z_t)),   z_t = sqrt(alpha_bar) x

is a shift of the denoised prediction, since x0 = x - sigma eps:

    D' = D + s sigma^2 grad_x r(decode(D(x, sigma)))

which for a Gaussian model and a linear reward is exactly the denoiser of p(x0) exp(s r(x0)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from comfyui_dno.dno_core import Evaluation, Path, Problem, Step
from comfyui_dno.dno_core.noise_map.saved import saved_tensors_kept

from .search import Draw, Seen

Dice = Callable[[Tensor], Tensor]
"""Fresh Gaussian noise shaped as its argument."""

FIRST_ROLL = 1_000_000


class GuidedMap(Protocol):
    """What guidance needs of a noise map: its parts."""

    @property
    def steps(self) -> tuple[Step, ...]: ...
    @property
    def start(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def denoise(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...


@dataclass(frozen=True)
class Guidance:
    """How strongly, and by which estimate, the reward moves a step.

    `strength` s multiplies the objective (which is in units of the rewards' scales).
    `samples` 0: r(D), universal guidance. n > 0: log mean exp(s r(D + r_t xi_j)) over n draws
    with r_t = sigma / sqrt(1 + sigma^2), LGD-MC. `recurrence` k: every step is done k times,
    noised back in between (universal guidance's self-recurrence).
    """

    strength: float
    samples: int = 0
    recurrence: int = 1


@torch.no_grad()
def guided_run(
    problem: Problem,
    noise_map: GuidedMap,
    z: Tensor,
    weights: Sequence[float],
    guidance: Guidance,
    dice: Dice,
) -> Evaluation:
    """One guided picture from noise z [N,B,C,H,W]: the stock steps with D' in place of D.

    Every step costs one denoiser call with its backward; every estimate of the reward's gradient
    one decode with its backward.
    """
    x = noise_map.start(z[0])
    latents = []
    for step in noise_map.steps:
        for again in reversed(range(guidance.recurrence)):
            latents.append(x)
            shifted = _shifted(problem, noise_map, x, z[0], step, weights, guidance, dice)
            following = step.a * x + step.b * shifted
            if step.noise is not None:
                following = following + step.c * (dice(x) if again else z[step.noise])
            if again:
                following = _noised_back(following, step, noise_map.steps, dice)
            x = following
    return _finished(problem, Path(tuple(latents), x), weights)


def _shifted(
    problem: Problem,
    noise_map: GuidedMap,
    x: Tensor,
    z0: Tensor,
    step: Step,
    weights: Sequence[float],
    guidance: Guidance,
    dice: Dice,
) -> Tensor:
    """D' at x, by one denoiser call whose graph serves the gradient as well."""
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad(), saved_tensors_kept():
        denoised = noise_map.denoise(leaf, step.sigma, z0)
        with torch.no_grad():
            v = _slope_at(problem, denoised.detach(), step, weights, guidance, dice)
        (slope,) = torch.autograd.grad(denoised, leaf, v)
    return denoised.detach() + float(step.sigma) ** 2 * slope


def _slope_at(
    problem: Problem,
    x0: Tensor,
    step: Step,
    weights: Sequence[float],
    guidance: Guidance,
    dice: Dice,
) -> Tensor:
    """d log mean_j exp(s r(x0 + r_t xi_j)) / d x0; with no draws, d s r(x0) / d x0."""
    if not guidance.samples:
        return guidance.strength * _scored(problem, x0, weights)[1]
    sigma = float(step.sigma)
    width = sigma / math.sqrt(1 + sigma**2)
    scored = [_scored(problem, x0 + width * dice(x0), weights) for _ in range(guidance.samples)]
    objectives, slopes = (torch.stack(parts) for parts in zip(*scored, strict=True))
    shares = torch.softmax(guidance.strength * objectives, dim=0)
    spread = shares.view(*shares.shape, *[1] * (x0.ndim - 1)).to(slopes)
    return guidance.strength * (spread * slopes).sum(0)


def _scored(problem: Problem, x0: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The objective [B] of decode(x0) and its gradient in x0."""
    image = problem.decoder.decode(x0).clamp(0, 1)
    _, value, slope = problem.score(image, weights, differentiate=True)
    assert slope is not None
    return value, problem.decoder.pull(x0, slope).to(x0)


def _noised_back(x: Tensor, step: Step, steps: Sequence[Step], dice: Dice) -> Tensor:
    """From the next noise level back to this step's: x + sqrt(s^2 - s'^2) xi."""
    last = step.index + 1 == len(steps)
    lower = 0.0 if last else float(steps[step.index + 1].sigma)
    return x + math.sqrt(float(step.sigma) ** 2 - lower**2) * dice(x)


def _finished(problem: Problem, path: Path, weights: Sequence[float]) -> Evaluation:
    raw = problem.decoder.decode(path.final)
    image = raw.clamp(0, 1)
    saturated = (raw != image).flatten(1).float().mean(1)
    scores, total, _ = problem.score(image, weights, differentiate=False)
    return Evaluation(path, image, scores, total, saturated, tuple(weights))


def guided_samples(
    problem: Problem,
    noise_map: GuidedMap,
    z: Tensor,
    weights: Sequence[float],
    draw: Draw,
    guidance: Guidance,
) -> Iterator[Seen]:
    """Guided pictures one after another, as `best_of_n` does with plain ones; without end.

    Draw 1, 2, ... of `draw` are the noises of later pictures; what else is random comes from
    draws far above them.
    """
    rolls = itertools.count(FIRST_ROLL)
    for index in itertools.count(1):
        yield (
            z,
            guided_run(
                problem, noise_map, z, weights, guidance, lambda x: draw(next(rolls))[0].to(x)
            ),
        )
        z = draw(index)
