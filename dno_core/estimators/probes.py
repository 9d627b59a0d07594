"""Probes: what the objective does where noise or image is moved a little, at random."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..objective import Term, objective
from ..problem import Evaluation, NonFinite, Problem

MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")
"""Apple's backend, some drivers and the CPU's allocator raise plain RuntimeErrors."""


@runtime_checkable
class WideMap(Protocol):
    """A NoiseMap whose `forward` also takes [N, c B, ...]: c noises for its B images, one after
    another. Maps that are none are asked for one probe at a time unless the caller says more."""

    def probe_room(self, z: Tensor, wanted: int) -> int:
        """How many noises shaped as z to run side by side: `wanted`, as far as it is safe; 0
        leaves it to the map and its memory."""
        ...


@dataclass(frozen=True)
class BlackBox:
    """The part of a problem's objective that is asked for values only.

    `problem` has those terms alone; `baseline` [B] is their objective at the noise itself.
    """

    problem: Problem
    weights: tuple[float, ...]
    baseline: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """The objective [B] of images [B,3,H,W] in [0,1]."""
        return self.problem.score(image, self.weights, differentiate=False)[1]


def black_box(
    problem: Problem, evaluation: Evaluation, chosen: Callable[[Term], bool]
) -> BlackBox | None:
    """The chosen terms among those that are climbed at all; None where there are none."""
    weights = evaluation.weights
    places = [i for i, term in enumerate(problem.terms) if weights[i] and chosen(term)]
    if not places:
        return None
    part = replace(problem, terms=tuple(problem.terms[i] for i in places))
    own = tuple(weights[i] for i in places)
    return BlackBox(part, own, objective(part.infos, evaluation.scores[places], own))


def directions(like: Tensor, key: int) -> Iterator[Tensor]:
    """Without end: xi ~ N(0, I), shaped as `like` [N,B,...].

    Every image has a generator of its own, keyed by (key, its place): what it draws does not
    depend on how many images stand beside it.
    """
    home = like.device if like.device.type == "cuda" else torch.device("cpu")
    generators = [
        torch.Generator(home).manual_seed((key + place * 0x9E3779B97F4A7C15) & (2**63 - 1))
        for place in range(1, like.shape[1] + 1)
    ]
    shape = (like.shape[0], *like.shape[2:])
    while True:
        drawn = [
            torch.randn(shape, generator=each, device=home, dtype=like.dtype) for each in generators
        ]
        yield torch.stack(drawn, 1).to(like.device)


class Difference(NamedTuple):
    """One direction xi [N,B,...] and what came of it: `gain` [B] of the objective and `move`
    [B,3,H,W] of the image, for a step of mu xi. Central where probes are antithetic."""

    xi: Tensor
    gain: Tensor
    move: Tensor


def noise_differences(
    box: BlackBox,
    z: Tensor,
    image: Tensor,
    key: int,
    *,
    count: int,
    scale: float,
    antithetic: bool,
    gaussian: bool,
    probe_batch: int,
) -> Iterator[Difference]:
    """`count` differences between M(z + mu xi) and M(z), or M(z - mu xi) if antithetic.

    `gaussian` rescales every probe by 1 / sqrt(1 + mu^2): Gaussian noise stays Gaussian. `image`
    is M(z), clamped as the probes' images are.
    """
    shrink = 1 / math.sqrt(1 + scale**2) if gaussian else 1.0
    signs = (1.0, -1.0) if antithetic else (1.0,)
    drawn: deque[Tensor] = deque()

    def points() -> Iterator[Tensor]:
        for xi in itertools.islice(directions(z, key), count):
            drawn.append(xi)
            for sign in signs:
                yield shrink * (z + sign * scale * xi)

    images = probe_images(box.problem, points(), probe_batch)
    for group in zip(*[images] * len(signs), strict=True):
        values = [box(probe) for probe in group]
        if antithetic:
            gain, move = (values[0] - values[1]) / 2, (group[0] - group[1]) / 2
        else:
            gain, move = values[0] - box.baseline, group[0] - image
        yield Difference(drawn.popleft(), gain, move)


@torch.no_grad()
def probe_images(problem: Problem, points: Iterable[Tensor], wanted: int) -> Iterator[Tensor]:
    """The clamped images [B,3,H,W] of noises [N,B,...], as many side by side as there is room for.

    Where memory runs out, half as many are tried. Raises NonFinite for an image with NaN.
    """
    pending, room = iter(points), 0
    for first in pending:
        batch = first.shape[1]
        room = room or _room(problem, first, wanted)
        chunk = [first, *itertools.islice(pending, room - 1)]
        while chunk:
            tried = chunk[:room]
            images = _render(problem, tried)
            if images is None:
                room = (len(tried) + 1) // 2
                continue
            chunk = chunk[room:]
            yield from images.split(batch)


def _room(problem: Problem, z: Tensor, wanted: int) -> int:
    if isinstance(problem.noise_map, WideMap):
        return max(problem.noise_map.probe_room(z, wanted), 1)
    return max(wanted, 1)


def _render(problem: Problem, points: list[Tensor]) -> Tensor | None:
    """Images [c B,3,H,W] of c noises run side by side; None where memory ran out and c > 1."""
    try:
        raw = problem.decoder.decode(problem.noise_map.forward(torch.cat(points, 1)).final)
    except (RuntimeError, MemoryError) as error:
        if len(points) == 1 or not is_out_of_memory(error):
            raise
        raw = None
    if raw is None:
        if points[0].device.type == "cuda":
            torch.cuda.empty_cache()
        return None
    if not bool(torch.isfinite(raw).all()):
        raise NonFinite(
            "The image of a probe holds NaN or infinity. Lower the probes' scale or the learning "
            "rate, or run the model in a wider precision (bf16 or fp32)."
        )
    return raw.clamp(0, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in any of the forms that torch and its backends report it in."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS)
