"""Gradient estimators: how d objective / d z is had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..objective import Term, climbed
from ..problem import Evaluation, Problem
from .zeroth_order import Hybrid2


class GradientEstimator(Protocol):
    """From an evaluation of noise z to an ascent direction in z."""

    def differentiates(self, terms: Sequence[Term]) -> bool:
        """Whether the evaluation must bring d objective / d image."""
        ...

    def exact(self, terms: Sequence[Term]) -> bool:
        """Whether the result is the objective's own gradient, which a slope can be held against,
        where the map's gradient mode is exact."""
        ...

    def runs(self, terms: Sequence[Term]) -> int:
        """Forward runs of the model that an estimate takes, beside the evaluation's own."""
        return 0

    def pulls(self, terms: Sequence[Term]) -> bool:
        """Whether decoder and sampler are differentiated, which takes memory for a graph."""
        return True

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        """d objective / d z, or an estimate of it, shaped as z. `key` seeds what is random."""
        ...


class Backpropagation(GradientEstimator):
    """The gradient through reward, decoder and sampler: exact in the map's exact gradient mode."""

    def differentiates(self, terms: Sequence[Term]) -> bool:
        return True

    def exact(self, terms: Sequence[Term]) -> bool:
        return True

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        if evaluation.image_gradient is None:
            raise ValueError("The evaluation has no image gradient. Evaluate with differentiate.")
        require_gradients(problem.terms)
        return problem.gradient(z, evaluation, evaluation.image_gradient)


@dataclass(frozen=True)
class Auto(GradientEstimator):
    """Backpropagation for rewards that have a gradient, Hybrid-2 for those that have none.

    The two image gradients are added before they are pulled back in one sweep. Raises ValueError
    unless Hybrid-2 is scaled by its fit: a unit norm has no share in a sum.
    """

    hybrid: Hybrid2 = field(default_factory=Hybrid2)

    def __post_init__(self) -> None:
        if self.hybrid.scaling != "fit":
            raise ValueError("A gradient of unit norm cannot be added to others. Use 'fit'.")

    def differentiates(self, terms: Sequence[Term]) -> bool:
        """Also for a term of weight 0: weights may change while a run goes on."""
        return any(term.reward.differentiable and not term.watch for term in terms)

    def exact(self, terms: Sequence[Term]) -> bool:
        return not any(is_black_box(term) for term in climbed(terms))

    def runs(self, terms: Sequence[Term]) -> int:
        return 0 if self.exact(terms) else self.hybrid.evaluations

    def __call__(self, problem: Problem, z: Tensor, evaluation: Evaluation, key: int) -> Tensor:
        slope = self.hybrid.image_gradient(problem, z, evaluation, key, is_black_box)
        if evaluation.image_gradient is not None:
            own = evaluation.image_gradient
            slope = own if slope is None else slope + own
        return torch.zeros_like(z) if slope is None else problem.gradient(z, evaluation, slope)


def is_black_box(term: Term) -> bool:
    return not term.reward.differentiable


def require_gradients(terms: Sequence[Term]) -> None:
    """Raise ValueError for a term that is to be climbed and whose reward has no gradient."""
    for term in climbed(terms):
        if is_black_box(term):
            raise ValueError(
                f"The reward '{term.reward.name}' has no gradient to climb. "
                "Choose the estimator 'auto', or only watch that reward."
            )
