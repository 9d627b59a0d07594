"""The self-check finds gradients that were made wrong on purpose, and passes right ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_models import FakeReward, mild_denoiser, red, small_noise, small_problem, steady, wave
from torch import Tensor

from comfyui_dno.dno_core import (
    Backpropagation,
    GradientMismatch,
    NonFinite,
    NoRegularizer,
    Term,
    optimize,
    verify_gradient,
)

SIDE = 16
"""Rounding averages over the numbers of an image: 512 are few already."""


class Louder(torch.autograd.Function):
    """Identity forward; the gradient comes back 1.15 times too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.15


def louder(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    return Louder.apply(mild_denoiser()(x, sigma, z0))


def detached_eps(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    return x + (mild_denoiser()(x, sigma, z0) - x).detach()


def detached(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    return mild_denoiser()(x, sigma, z0).detach()


def checked(problem: Any, z: Tensor, tolerance: float = 0.05) -> float:
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    gradient = Backpropagation()(problem, z, evaluation, 0)
    return verify_gradient(problem, z, evaluation, gradient, tolerance)


@pytest.mark.parametrize("wrong", [louder, detached_eps, detached])
@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_made_wrong_on_purpose_is_found(wrong: Any, seed: int) -> None:
    with pytest.raises(GradientMismatch):
        checked(small_problem(denoise=wrong), small_noise(seed=seed, side=SIDE))


def test_a_wrong_gradient_in_one_image_of_a_batch_is_found() -> None:
    def second_detached(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return torch.cat([mild_denoiser()(x[:1], sigma, z0[:1]), detached(x[1:], sigma, z0)])

    with pytest.raises(GradientMismatch):
        checked(small_problem(denoise=second_detached), small_noise(side=SIDE))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_right_gradient_passes_in_float32(batch: int, seed: int) -> None:
    assert (
        checked(small_problem(denoise=mild_denoiser()), small_noise(batch, seed=seed, side=SIDE))
        < 0.01
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("reward", [wave, red])
def test_a_right_gradient_passes_in_bfloat16(seed: int, reward: Any) -> None:
    """The default tolerance is 5 %."""
    denoise = mild_denoiser(torch.bfloat16)
    problem = small_problem(denoise=denoise, terms=(Term(FakeReward(reward)),))
    assert checked(problem, small_noise(seed=seed, side=SIDE)) < 0.05


def test_a_clamped_image_does_not_disturb_the_check() -> None:
    """Saturated pixels keep their straight-through gradient, and the check looks before them."""

    def burnt(x: Tensor) -> Tensor:
        return (x.mean(1, keepdim=True) * 0.8 + 0.5).repeat(1, 3, 1, 1)

    problem = small_problem(denoise=mild_denoiser(), decode=burnt)
    z = small_noise(side=SIDE)
    assert problem.evaluate(z, (1.0,)).saturated.min() > 0.2
    assert checked(problem, z) < 0.01


def test_a_run_checks_its_first_gradient_and_only_that_one() -> None:
    calls = 0

    def counting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        nonlocal calls
        calls += not torch.is_grad_enabled()
        return mild_denoiser()(x, sigma, z0)

    run = optimize(
        small_problem(denoise=counting),
        small_noise(side=SIDE),
        steady(),
        seed=0,
        regularizer=NoRegularizer(),
    )
    spent = []
    for _ in range(4):
        before = calls
        next(run)
        spent.append(calls - before)
    assert spent == [5, 15, 5, 5], "T = 5: one forward, then two more for the check, then one each"


def test_a_run_stops_at_a_wrong_gradient_after_iteration_0_and_not_without_the_check() -> None:
    run = optimize(small_problem(denoise=detached_eps), small_noise(side=SIDE), steady(), seed=0)
    assert next(run).index == 0
    with pytest.raises(GradientMismatch, match="own risk"):
        next(run)
    unchecked = optimize(
        small_problem(denoise=detached_eps),
        small_noise(side=SIDE),
        steady(),
        seed=0,
        check_tolerance=None,
    )
    assert [next(unchecked).index for _ in range(2)] == [0, 1]


def test_a_fully_detached_model_is_told_apart_from_a_reward_without_gradient() -> None:
    with pytest.raises(GradientMismatch, match="exactly zero"):
        checked(small_problem(denoise=detached), small_noise(side=SIDE))
    flat = small_problem(terms=(Term(FakeReward(lambda images: red(images) * 0)),))
    with pytest.raises(GradientMismatch, match="reward gives no gradient"):
        checked(flat, small_noise(side=SIDE))
    weight = torch.ones((), requires_grad=True)
    for factor in (1.0, weight):
        closed = FakeReward(lambda images, factor=factor: red(images.detach()) * factor)
        with pytest.raises(ValueError, match="'fake' is said to be differentiable"):
            checked(small_problem(terms=(Term(closed),)), small_noise(side=SIDE))


def test_a_gradient_of_nan_is_called_that_also_in_the_first_iteration() -> None:
    def square_root_at_zero(images: Tensor) -> Tensor:
        return torch.sqrt((images - images.detach()).abs()).flatten(1).sum(1) + red(images)

    problem = small_problem(terms=(Term(FakeReward(square_root_at_zero)),))
    run = optimize(problem, small_noise(side=SIDE), steady(), seed=0)
    assert next(run).index == 0
    with pytest.raises(NonFinite, match="gradient of iteration 0"):
        next(run)


def flip(sharpness: float) -> Any:
    """A denoiser on the edge of a decision: the first number of z flips the whole picture."""

    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        side = torch.tanh(sharpness * (z0.flatten(1)[:, :1] - 0.3))
        return mild_denoiser()(x, sigma, z0) + 0.2 * side.view(-1, 1, 1, 1)

    return denoise


@pytest.mark.parametrize("sharpness", [3.0, 30.0, 300.0])
def test_a_right_gradient_on_a_sharp_edge_passes(sharpness: float) -> None:
    z = small_noise(2, seed=1, side=SIDE)
    z[0, 0].flatten()[0] = 0.3
    assert checked(small_problem(denoise=flip(sharpness)), z) <= 0.05


def test_a_slope_that_never_settles_is_no_verdict() -> None:
    z = small_noise(2, seed=1, side=SIDE)
    z[0, 0].flatten()[0] = 0.3
    assert checked(small_problem(denoise=flip(3e3)), z) > 0.05


def test_a_run_says_that_its_check_was_inconclusive_and_goes_on() -> None:
    z = small_noise(2, seed=1, side=SIDE)
    z[0, 0].flatten()[0] = 0.3
    verdicts = []
    for denoise in (flip(3e3), mild_denoiser()):
        run = optimize(small_problem(denoise=denoise), z, steady(), seed=0)
        assert next(run).update is None
        updates = [next(run).update for _ in range(2)]
        verdicts.append([update.inconclusive for update in updates if update is not None])
    assert verdicts == [[True, False], [False, False]]


@pytest.mark.parametrize("sharpness", [3.0, 30.0])
def test_a_wrong_gradient_on_a_sharp_edge_is_found(sharpness: float) -> None:
    def wrong(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return Louder.apply(flip(sharpness)(x, sigma, z0))

    z = small_noise(2, seed=1, side=SIDE)
    z[0, 0].flatten()[0] = 0.3
    with pytest.raises(GradientMismatch):
        checked(small_problem(denoise=wrong), z)
