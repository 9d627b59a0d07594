"""Best of N: per image the best of the candidates, to the bit, and without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from core_models import FakeReward, conv_denoiser, red, small_noise, small_problem, wave
from torch import Tensor

from comfyui_dno.dno_core import NonFinite, Term, Typicality, screen

QUICK = Typicality(permutations=5)
COUNT = 6


def draw(index: int) -> Tensor:
    return small_noise(3, seed=40 + index)


def test_every_image_gets_the_noise_that_was_best_for_it() -> None:
    problem = small_problem()
    found = screen(draw, problem, (1.0,), COUNT, QUICK)
    alone = torch.stack([problem.evaluate(draw(i), (1.0,)).objective for i in range(COUNT)])
    typical = torch.stack([QUICK(draw(i)).typical for i in range(COUNT)])
    typical[0] = True
    expected = alone.masked_fill(~typical, -torch.inf).argmax(0).tolist()
    assert found.chosen == tuple(expected)
    assert len(set(expected)) > 1, "the images must not all like the same candidate"
    for image, candidate in enumerate(expected):
        assert torch.equal(found.noise[:, image], draw(candidate)[:, image])
    assert found.objectives == tuple(map(tuple, alone.double().tolist()))
    best = problem.evaluate(found.noise, (1.0,)).objective
    assert torch.equal(best, alone[torch.tensor(expected), torch.arange(3)])


def test_one_candidate_is_the_picture_the_user_had() -> None:
    found = screen(draw, small_problem(), (1.0,), 1, QUICK)
    assert found.chosen == (0, 0, 0)
    assert torch.equal(found.noise, draw(0))


def test_the_weights_decide() -> None:
    terms = (Term(FakeReward(wave)), Term(FakeReward(red, scale=0.01)))
    problem = small_problem(terms=terms)
    both = [screen(draw, problem, weights, COUNT, QUICK) for weights in ((1.0, 0.0), (0.0, 1.0))]
    assert both[0].chosen != both[1].chosen
    images = [problem.evaluate(found.noise, (0.0, 1.0)).scores for found in both]
    assert bool((images[0][0] >= images[1][0]).all()) and bool((images[1][1] >= images[0][1]).all())


def test_untypical_candidates_do_not_count_unless_it_is_the_users_own() -> None:
    """Noise that is far too loud, whatever its picture scores."""

    def contrasty(images: Tensor) -> Tensor:
        return (images - 0.5).square().flatten(1).mean(1)

    def loud(*which: int) -> Callable[[int], Tensor]:
        return lambda index: draw(index) * (4.0 if index in which else 1.0)

    problem = small_problem(terms=(Term(FakeReward(contrasty)),))
    scored = torch.tensor(screen(loud(0, 2), problem, (1.0,), 4, QUICK).objectives)
    assert not bool(QUICK(loud(2)(2)).typical.any())
    assert bool((scored[[0, 2]].amin(0) > scored[[1, 3]].amax(0)).all()), "loud scores higher"
    assert screen(loud(0, 2), problem, (1.0,), 4, QUICK).chosen == (0, 0, 0)
    assert 2 not in screen(loud(2), problem, (1.0,), 4, QUICK).chosen


def test_ties_go_to_the_earlier_candidate() -> None:
    problem = small_problem(terms=(Term(FakeReward(lambda images: images.flatten(1)[:, 0] * 0)),))
    assert screen(draw, problem, (1.0,), 4, QUICK).chosen == (0, 0, 0)


def test_no_graph_is_built_and_the_drawn_noise_is_not_changed() -> None:
    modes = []

    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return conv_denoiser(torch.float32)(x, sigma, z0)

    drawn = [draw(i) for i in range(COUNT)]
    before = [z.clone() for z in drawn]
    found = screen(drawn.__getitem__, small_problem(denoise=denoise), (1.0,), COUNT, QUICK)
    assert len(modes) == 5 * COUNT and not any(modes)
    assert all(torch.equal(a, b) for a, b in zip(drawn, before, strict=True))
    assert not found.noise.requires_grad


def test_each_candidate_is_announced_once_it_is_scored() -> None:
    heard = []
    found = screen(
        draw,
        small_problem(),
        (1.0,),
        3,
        QUICK,
        lambda index, evaluation: heard.append((index, tuple(evaluation.objective.tolist()))),
    )
    assert heard == list(enumerate(found.objectives))


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be screened. Ask for 1 or more"):
        screen(draw, small_problem(), (1.0,), 0, QUICK)


def test_a_candidate_that_gives_nan_is_passed_over_and_the_users_own_is_not() -> None:
    def broken(which: int) -> Callable[[int], Tensor]:
        return lambda index: draw(index) * (float("nan") if index == which else 1.0)

    found = screen(broken(2), small_problem(), (1.0,), 4, QUICK)
    assert 2 not in found.chosen and bool(torch.isfinite(found.noise).all())
    assert found.objectives[2] == (float("-inf"),) * 3
    with pytest.raises(NonFinite):
        screen(broken(0), small_problem(), (1.0,), 4, QUICK)
