"""Gradient estimators: how d objective / d z is had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .objective import Term
from .problem import Evaluation, Problem


class GradientEstimator(Protocol):
    """From an evaluation of noise z to an ascent direction in z."""

    def differentiates(self, terms: Sequence[Term]) -> bool:
        """Whether the evaluation must bring d objective / d image."""
        ...

    def exact(self, terms: Sequence[Term]) -> bool:
        """Whether the result is the objective's own gradient, which a slope can be held against."""
        ...

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        """d objective / d z, or an estimate of it, shaped as z. `key` seeds what is random."""
        ...


class Backpropagation:
    """The exact gradient, through reward, decoder and every step of the sampler."""

    def differentiates(self, terms: Sequence[Term]) -> bool:
        return True

    def exact(self, terms: Sequence[Term]) -> bool:
        return True

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        if evaluation.image_gradient is None:
            raise ValueError("The evaluation has no image gradient. Evaluate with differentiate.")
        require_gradients(problem.terms)
        return problem.gradient(z, evaluation, evaluation.image_gradient)


def require_gradients(terms: Sequence[Term]) -> None:
    """Raise ValueError for a term that is to be climbed and whose reward has no gradient."""
    for term in terms:
        if term.weight and not term.watch and not term.reward.differentiable:
            raise ValueError(
                f"The reward '{term.reward.name}' has no gradient to climb. "
                "Choose one that has, or set it to 'watch only'."
            )
