"""What is maximized: goals, weights, units of scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from core_models import FakeReward, red, small_noise, small_problem, wave

from comfyui_dno.dno_core import NonFinite, Problem, Term, objective, weights_of


def test_goals_weights_and_scales_make_the_objective() -> None:
    terms = (
        Term(FakeReward(red, scale=0.5), weight=2.0),
        Term(FakeReward(red, scale=4.0), weight=3.0, goal="minimize"),
        Term(FakeReward(red, scale=10.0), weight=5.0, goal="target", target=7.0),
        Term(FakeReward(red, scale=1.0), weight=100.0, watch=True),
    )
    assert weights_of(terms) == weights_of([t.info for t in terms]) == (2.0, 3.0, 5.0, 0.0)
    scores = torch.tensor([[1.0, -1.0], [8.0, 0.0], [5.0, 9.0], [50.0, 50.0]])
    found = objective([t.info for t in terms], scores, weights_of(terms))
    expected = [2 * 1 / 0.5 - 3 * 8 / 4 - 5 * 2 / 10, 2 * -1 / 0.5 - 0 - 5 * 2 / 10]
    assert found.tolist() == pytest.approx(expected)


def test_a_watched_term_is_scored_and_gives_no_gradient() -> None:
    term = Term(FakeReward(wave, scale=2.0))
    watched = Term(FakeReward(red), weight=9.0, watch=True)
    z = small_noise()
    alone = small_problem(terms=(term,)).evaluate(z, (1.0,), differentiate=True)
    both = small_problem(terms=(term, watched))
    beside = both.evaluate(z, weights_of(both.terms), differentiate=True)
    assert torch.equal(alone.objective, beside.objective)
    assert torch.equal(alone.image_gradient, beside.image_gradient)
    assert torch.equal(beside.scores[1], red(beside.image))


@pytest.mark.parametrize("goal, target", [("maximize", 0.0), ("minimize", 0.0), ("target", 0.4)])
def test_the_image_gradient_is_the_slope_of_the_objective(goal: str, target: float) -> None:
    terms = (
        Term(FakeReward(red, scale=0.1), 0.5, goal, target),  # type: ignore[arg-type]
        Term(FakeReward(wave, scale=3.0), 2.0),
    )
    problem = small_problem(terms=terms)
    image = problem.evaluate(small_noise(), (0.5, 2.0)).image.double()
    _, _, gradient = problem.score(image, (0.5, 2.0), differentiate=True)
    move = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)).double()

    def total(delta: float) -> torch.Tensor:
        moved = image + delta * move
        scores = torch.stack([red(moved), wave(moved)])
        return objective(problem.infos, scores, (0.5, 2.0))

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    assert (gradient * move).flatten(1).sum(1).tolist() == pytest.approx(slope.tolist(), rel=1e-6)


def test_saturated_pixels_are_counted_clamped_for_the_reward_and_keep_their_gradient() -> None:
    seen = []

    def spy(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.detach().clone())
        return red(images)

    def burnt(x: torch.Tensor) -> torch.Tensor:
        image = torch.full((x.shape[0], 3, 2, 2), 0.5) + 0 * x.mean()
        image[0, 0] += 3.0
        image[1, 1, 0, 0] -= 3.0
        return image

    problem = small_problem(terms=(Term(FakeReward(spy)),), decode=burnt)
    found = problem.evaluate(small_noise(), (1.0,), differentiate=True)
    assert found.saturated.tolist() == pytest.approx([4 / 12, 1 / 12])
    assert found.image.min() == 0 and found.image.max() == 1
    assert all(torch.equal(images, found.image) for images in seen)
    assert found.image_gradient is not None and bool((found.image_gradient[0, 0] == 0.25).all())


def test_a_reward_without_gradient_leaves_the_image_gradient_to_the_others() -> None:
    stubborn = FakeReward(lambda images: red(images.detach()), differentiable=False)
    problem = small_problem(terms=(Term(stubborn), Term(FakeReward(red))))
    found = problem.evaluate(small_noise(), (1.0, 1.0), differentiate=True)
    alone = small_problem(terms=(Term(FakeReward(red)),)).evaluate(
        small_noise(), (1.0,), differentiate=True
    )
    assert torch.equal(found.image_gradient, alone.image_gradient)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_named(bad: float) -> None:
    with pytest.raises(NonFinite, match="decoded image"):
        small_problem(decode=lambda x: x[:, :1] * bad).evaluate(small_noise(), (1.0,))
    broken = Term(FakeReward(lambda images: red(images) + bad, name="aesthetic"))
    with pytest.raises(NonFinite, match="'aesthetic'"):
        small_problem(terms=(broken,)).evaluate(small_noise(), (1.0,))


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,)])
def test_a_reward_that_does_not_give_one_score_an_image_is_named(shape: tuple[int, ...]) -> None:
    odd = Term(FakeReward(lambda images: images.mean() * torch.ones(shape), name="odd"))
    with pytest.raises(ValueError, match="'odd' gave a tensor of shape .* for 2 images"):
        small_problem(terms=(odd,)).evaluate(small_noise(), (1.0,), differentiate=True)


@pytest.mark.parametrize("scores", [[0.5, 0.5], np.array([0.5, 0.5]), 0.5])
def test_a_reward_that_gives_no_tensor_is_named(scores: object) -> None:
    odd = Term(FakeReward(lambda images: scores, name="odd", differentiable=False))
    with pytest.raises(TypeError, match="'odd' gave .*, not a tensor. Make it return one score"):
        small_problem(terms=(odd,)).evaluate(small_noise(), (1.0,))


def test_a_black_box_may_count_in_whole_numbers() -> None:
    count = FakeReward(lambda images: torch.tensor([3, 4]), differentiable=False)
    evaluation = small_problem(terms=(Term(count),)).evaluate(small_noise(), (1.0,))
    assert torch.equal(evaluation.scores, torch.tensor([[3.0, 4.0]]))


@pytest.mark.gpu
def test_a_black_box_may_answer_on_the_cpu_while_the_run_is_on_the_gpu() -> None:
    count = FakeReward(lambda images: torch.tensor([3, 4]), differentiable=False)
    problem = Problem(None, None, (Term(count), Term(FakeReward(red))))  # type: ignore[arg-type]
    images = torch.rand(2, 3, 4, 4, device="cuda")
    scores, total, gradient = problem.score(images, (1.0, 1.0), differentiate=True)
    assert (scores.device, total.device) == (images.device, images.device)
    assert gradient is not None and bool(gradient.any())


def test_an_unknown_goal_is_refused() -> None:
    with pytest.raises(ValueError, match="maximise"):
        Term(FakeReward(red), goal="maximise")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        replace(Term(FakeReward(red)), goal="up")  # type: ignore[arg-type]
