"""What is maximized: weighted rewards, each in units of its own spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

Goal = Literal["maximize", "minimize", "target"]


class Reward(Protocol):
    """Images -> scores. `score` takes float32 [B,3,H,W] in [0,1] and returns float32 [B].

    `scale`: standard deviation of the score over plain samples of a stated model, in `unit`.
    `modules`: the networks that must be on the device before `score` is called.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def scale(self) -> float: ...
    @property
    def differentiable(self) -> bool: ...
    @property
    def modules(self) -> tuple[torch.nn.Module, ...]: ...

    def score(self, images: Tensor, context: Any) -> Tensor: ...


@dataclass(frozen=True)
class Term:
    """One reward in the objective. `watch`: scored and shown, never optimized.

    `context` is handed to the reward as it is (prompts, references, masks). Raises ValueError for
    an unknown goal.
    """

    reward: Reward
    weight: float = 1.0
    goal: Goal = "maximize"
    target: float = 0.0
    watch: bool = False
    context: Any = None

    def __post_init__(self) -> None:
        if self.goal not in get_args(Goal):
            raise ValueError(f"The goal '{self.goal}' is unknown. Use one of {get_args(Goal)}.")

    @property
    def info(self) -> TermInfo:
        reward = self.reward
        return TermInfo(
            reward.name,
            reward.unit,
            reward.scale,
            self.goal,
            self.target,
            self.weight,
            self.watch,
        )


@dataclass(frozen=True)
class TermInfo:
    """What of a term outlives the run: everything but the reward model and its context."""

    name: str
    unit: str
    scale: float
    goal: Goal
    target: float
    weight: float
    watch: bool


def climbed(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms that pull: weighted, and not only watched."""
    return tuple(term for term in terms if term.weight and not term.watch)


def weights_of(terms: Sequence[Term | TermInfo]) -> tuple[float, ...]:
    """The weights a run starts with; a watched term has weight 0."""
    return tuple(0.0 if term.watch else term.weight for term in terms)


def objective(terms: Sequence[TermInfo], scores: Tensor, weights: Sequence[float]) -> Tensor:
    """Sum of weight * goal(score) / scale over the terms: scores [K,B] -> [B].

    goal(s) is s (maximize), -s (minimize) or -|s - target|.
    """
    total = torch.zeros_like(scores[0])
    for term, score, weight in zip(terms, scores, weights, strict=True):
        if weight:
            total = total + weight / term.scale * _aim(term, score)
    return total


def _aim(term: TermInfo, score: Tensor) -> Tensor:
    if term.goal == "maximize":
        return score
    if term.goal == "minimize":
        return -score
    return -(score - term.target).abs()
