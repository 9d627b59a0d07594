"""Best of N: the most promising of several noises, found before the first iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .probability.typicality import Typicality
from .problem import Evaluation, NonFinite, Problem


@dataclass(frozen=True)
class Screening:
    """The winner: `noise` [N,B,...], mixed image by image from the candidates `chosen` [B].

    `objectives` [count][B] of all candidates.
    """

    noise: Tensor
    chosen: tuple[int, ...]
    objectives: tuple[tuple[float, ...], ...]


@torch.no_grad()
def screen(
    draw: Callable[[int], Tensor],
    problem: Problem,
    weights: Sequence[float],
    count: int,
    typicality: Typicality | None = None,
    on_candidate: Callable[[int, Evaluation], None] = lambda index, evaluation: None,
) -> Screening:
    """Score the noises draw(0) .. draw(count - 1), each [N,B,...], and take the best per image.

    The images of a batch are independent, so their noises are mixed. Candidate 0 always counts,
    the others where their P(z) is typical; ties go to the earlier. One forward run a candidate, no
    gradient; `on_candidate` is told of each. A candidate that gives NaN is passed over (its
    objective is -inf). Raises ValueError for a count below 1, NonFinite for candidate 0.
    """
    if count < 1:
        raise ValueError(f"{count} candidates cannot be screened. Ask for 1 or more.")
    typicality = typicality or Typicality()
    noise, best, chosen = torch.empty(0), torch.empty(0), torch.empty(0)
    objectives = []
    for index in range(count):
        candidate = draw(index)
        try:
            evaluation = problem.evaluate(candidate, weights)
        except NonFinite:
            if index == 0:
                raise
            objectives.append((-math.inf,) * candidate.shape[1])
            continue
        if index == 0:
            noise, best = candidate, evaluation.objective
            chosen = torch.zeros_like(best, dtype=torch.long)
        else:
            better = (evaluation.objective > best) & typicality(candidate).typical
            noise = torch.where(better.view(1, -1, *[1] * (noise.ndim - 2)), candidate, noise)
            best = torch.where(better, evaluation.objective, best)
            chosen = torch.where(better, index, chosen)
        objectives.append(tuple(evaluation.objective.cpu().double().tolist()))
        on_candidate(index, evaluation)
    return Screening(noise, tuple(chosen.tolist()), tuple(objectives))
