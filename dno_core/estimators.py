"""Gradient estimators: how d objective / d z is had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .objective import Term
from .problem import Evaluation, Problem


class GradientEstimator(Protocol):
    """`differentiates`: whether the evaluation must bring d objective / d image."""

    @property
    def differentiates(self) -> bool: ...

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        """d objective / d z, shaped as z. `key` seeds what is random in it."""
        ...


class Backpropagation:
    """The exact gradient, through reward, decoder and every step of the sampler."""

    differentiates = True

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
