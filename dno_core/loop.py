"""The optimization of the noise, as a generator: the caller owns stopping, progress and pauses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .check import Checked, check_gradient
from .estimators.gradient import Auto, GradientEstimator
from .optimizers import NoiseOptimizer, clip_per_image
from .probability.regularizers import PermutationRegularizer, Regularizer
from .probability.typicality import Typicality, TypicalityReading
from .problem import Evaluation, NonFinite, Problem


@dataclass(frozen=True)
class Settings:
    """What may change while a run goes on; read anew for every iteration.

    `gamma` is the strength of the regularizer, `weights` the terms', `clip` the largest gradient
    norm of an image (0: no clip).
    """

    learning_rate: float
    gamma: float
    weights: tuple[float, ...]
    clip: float = 1.0


@dataclass(frozen=True)
class Update:
    """The step that led to an iteration, per image [B]: the gradient's norm before the clip
    (regularizer included), the regularizer's value. `inconclusive`: its gradient was to be
    checked, and no slope that it could be held against was to be measured. `cosine`: between the
    gradient of a biased mode and the exact one, where the latter was computed to be checked."""

    gradient_norm: Tensor
    penalty: Tensor
    inconclusive: bool = False
    cosine: Tensor | None = None


@dataclass(frozen=True)
class Iteration:
    """One iteration: noise `z` [N,B,C,H,W] and all that came out of it, on the run's device.

    `latent` x_T [B,C,H,W], sampled in so many `steps`; `image` [B,3,H,W] in [0,1]; `scores` [K,B];
    `objective` [B]; `saturated` [B]; `settings` those that weigh its objective and shape the step
    after it; `seconds` spent on it, pauses excluded; `optimizer_state` belongs to `z`, to go on
    from.
    """

    index: int
    z: Tensor
    latent: Tensor
    image: Tensor
    scores: Tensor
    objective: Tensor
    saturated: Tensor
    typicality: TypicalityReading
    settings: Settings
    update: Update | None
    seconds: float
    optimizer_state: dict[str, Tensor] = field(repr=False)
    steps: int = 0


@dataclass(frozen=True)
class Part:
    """A later part of a run: from iteration `start` on, `problem` takes the noise of the one
    before, and the first `held` tensors of it stay as they are.

    A climb in few steps goes on in all of them, say, and then with the late noises alone.
    """

    start: int
    problem: Problem
    held: int = 0


def optimize(
    problem: Problem,
    z: Tensor,
    settings_at: Callable[[int], Settings],
    *,
    seed: int,
    optimizer: str = "adam",
    estimator: GradientEstimator | None = None,
    regularizer: Regularizer | None = None,
    typicality: Typicality | None = None,
    check_tolerance: float | None = 0.05,
    start: int = 0,
    optimizer_state: Mapping[str, Tensor] | None = None,
    parts: Sequence[Part] = (),
) -> Generator[Iteration, None, None]:
    """Yield one Iteration after another, without end, climbing from noise z [N,B,C,H,W].

        z <- project(optimizer(z, precondition(d objective / dz - gamma d L_reg / dz)))

    Every image of the batch is a problem of its own. All that is random is keyed by (seed,
    iteration), so a run continued at `start` with the last noise and `optimizer_state` repeats
    an uninterrupted one. `check_tolerance` bounds the relative error of the first gradient
    against a finite difference (None: no check); it changes nothing of the run. In a biased
    gradient mode the exact gradient is checked, and the cosine with it is reported. `parts`:
    those in which the run goes on otherwise, in their order.

    Raises NonFinite (what was yielded before stays good) and GradientMismatch.
    """
    estimator = estimator or Auto()
    regularizer = regularizer or PermutationRegularizer()
    typicality = typicality or Typicality()
    z = z.detach().to(torch.promote_types(z.dtype, torch.float32), copy=True)
    stepper = NoiseOptimizer(optimizer, z)
    if optimizer_state is not None:
        stepper.restore(optimizer_state)
    update = None
    resumed = time.perf_counter()
    held = 0
    for index in itertools.count(start):
        settings = settings_at(index)
        for part in parts:
            if index >= part.start:
                problem, held = part.problem, part.held
        evaluation = problem.evaluate(z, settings.weights, estimator.differentiates(problem.terms))
        yield Iteration(
            index=index,
            z=z,
            latent=evaluation.path.final,
            image=evaluation.image,
            scores=evaluation.scores,
            objective=evaluation.objective,
            saturated=evaluation.saturated,
            typicality=typicality(z),
            settings=settings,
            update=update,
            seconds=time.perf_counter() - resumed,
            optimizer_state=stepper.state(),
            steps=len(evaluation.path.latents),
        )
        resumed = time.perf_counter()
        key = iteration_key(seed, index)
        gradient = estimator(problem, z, evaluation, key)
        _require_finite_gradient(gradient, index)
        checked = Checked()
        if check_tolerance is not None and index == start and estimator.exact(problem.terms):
            again = partial(_gradient_of, estimator, z, evaluation, key)
            checked = check_gradient(problem, z, evaluation, gradient, again, check_tolerance)
        penalty, pull = regularizer.penalty(z, key)
        direction = regularizer.precondition(gradient - settings.gamma * pull)
        clipped, norm = clip_per_image(direction, settings.clip)
        _require_finite_gradient(norm, index)
        update = Update(norm, penalty, *checked)
        z = stepper.step(clipped, settings.learning_rate, regularizer.project, z[:held])


def _gradient_of(
    estimator: GradientEstimator, z: Tensor, evaluation: Evaluation, key: int, problem: Problem
) -> Tensor:
    return estimator(problem, z, evaluation, key)


def _require_finite_gradient(values: Tensor, index: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFinite(
            f"The gradient of iteration {index} holds NaN or infinity. Lower the learning "
            "rate, or run the model in a wider precision (bf16 or fp32)."
        )


def iteration_key(seed: int, index: int) -> int:
    """A 63-bit key for the generators of one iteration, far from the seeds users choose."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed ^= mixed >> 31
    return (mixed * 0x94D049BB133111EB & (2**64 - 1)) >> 1
