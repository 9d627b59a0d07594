"""The noise a run starts from: that of its seed, or the best of several seeds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dno_core import Evaluation, Problem, screen, weights_of
from ..dno_core.trajectories.trajectory import to_uint8
from .comfy_bridge.progress import Progress
from .request import Request

SEEDS = 2**64 - 1
"""The stock sampler adds 1 to a seed, and the generators take 64 bits."""


def screened(request: Request) -> int:
    """How many seeds are drawn and scored before iteration 0; 0 where none is chosen from."""
    return request.screen_seeds if request.screen_seeds > 1 and request.resume is None else 0


def starting_noise(
    request: Request,
    problem: Problem,
    z: Tensor,
    draw: Callable[[int], Tensor],
    progress: Progress,
) -> tuple[Tensor, list[int]]:
    """Noise [N,B,...] and, where seeds were screened, the seed it is from for every image.

    `z` is the noise of the request's own seed, `draw(seed)` gives that of the stock run with
    another one; candidates are the seeds that follow.
    """
    count = screened(request)
    if not count:
        return z, []

    def candidate(index: int) -> Tensor:
        progress.text(f"screening seed {index + 1}/{count}")
        return draw(_seed(request, index)) if index else z

    def show(index: int, evaluation: Evaluation) -> None:
        progress.show(to_uint8(evaluation.image))

    found = screen(candidate, problem, weights_of(problem.infos), count, on_candidate=show)
    return found.noise, [_seed(request, index) for index in found.chosen]


def first_noise(request: Request, z: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    """The noise [N,B,...] of iteration 0 of the run that is resumed; `z` is that of its seed."""
    earlier = request.resume.meta if request.resume is not None else {}
    seeds = [int(seed) for seed in earlier.get("screened_seeds", ())]
    if len(seeds) != z.shape[1]:
        return z
    noises = {seed: draw(seed) for seed in sorted(set(seeds))}
    return torch.stack([noises[seed][:, image] for image, seed in enumerate(seeds)], 1)


def _seed(request: Request, index: int) -> int:
    return (request.seed + index) % SEEDS
