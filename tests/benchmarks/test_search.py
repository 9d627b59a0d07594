"""Best-of-N and random neighbours, on a model that hands its noise through."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.benchmarks.experiments.search import best_of_n, draw_for, random_neighbours
from comfyui_dno.dno_core import FunctionDecoder, Path, Problem, Term


class Straight:
    def forward(self, z: Tensor) -> Path:
        return Path((), z[0])


class Mean:
    name, unit, scale, differentiable, modules = "mean", "", 1.0, False, ()

    def score(self, images: Tensor, context: Any) -> Tensor:
        return images.flatten(1).mean(1)


PROBLEM = Problem(Straight(), FunctionDecoder(torch.sigmoid), (Term(Mean()),))  # type: ignore[arg-type]


def noise(batch: int = 3) -> Tensor:
    return torch.randn(1, batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_draws_are_gaussian_keyed_by_seed_and_index_and_independent_of_the_batch() -> None:
    z = noise()
    draw = draw_for([5, 6, 7], z)
    torch.testing.assert_close(draw(2)[:, 1:2], draw_for([6], z[:, :1])(2), rtol=0, atol=0)
    assert not torch.equal(draw(1), draw(2))
    many = torch.stack([draw(index) for index in range(100)])
    assert many.mean().abs() < 0.03 and (many.std() - 1).abs() < 0.03


def test_best_of_n_starts_at_the_given_noise_and_draws_afresh() -> None:
    z = noise()
    seen = list(itertools.islice(best_of_n(PROBLEM, z, (1.0,), draw_for([1, 2, 3], z)), 4))
    assert torch.equal(seen[0][0], z)
    assert all(not torch.equal(a[0], b[0]) for a, b in itertools.combinations(seen, 2))
    torch.testing.assert_close(seen[2][1].objective, PROBLEM.evaluate(seen[2][0], (1.0,)).objective)


def test_random_neighbours_climb() -> None:
    z = noise()
    run = random_neighbours(PROBLEM, z, (1.0,), draw_for([1, 2, 3], z), distance=0.3)
    seen = list(itertools.islice(run, 200))
    values = torch.stack([evaluation.objective for _, evaluation in seen])
    assert (values.amax(0) > values[0] + 0.1).all()


def test_where_the_reward_knows_nothing_the_noise_stays_gaussian_however_long_the_search() -> None:
    class Dice(Mean):
        def score(self, images: Tensor, context: Any) -> Tensor:
            return (images.flatten(1).sum(1) * 1e6) % 1

    problem = Problem(PROBLEM.noise_map, PROBLEM.decoder, (Term(Dice()),))
    z = noise(400)
    run = random_neighbours(problem, z, (1.0,), draw_for(range(400), z), distance=0.7)
    *_, (near, _) = itertools.islice(run, 20)
    assert near.std() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(near, z)


def test_every_image_keeps_its_own_best_noise() -> None:
    """The pivot of an image moves only when that image scored higher."""
    z = noise(2)
    draw = draw_for([1, 2], z)
    run = random_neighbours(PROBLEM, z, (1.0,), draw, distance=0.6)
    pivot, best = z.clone(), torch.full((2,), -torch.inf)
    for index, (near, evaluation) in enumerate(itertools.islice(run, 30)):
        if index:
            expected = 0.8 * pivot + 0.6 * draw(index)
            torch.testing.assert_close(near, expected)
        for image in range(2):
            if evaluation.objective[image] > best[image]:
                best[image] = evaluation.objective[image]
                pivot[:, image] = near[:, image]
