"""Gradient modes: what the cheap sweeps compute, what they cost, and how a run checks them."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Any

import pytest
import torch
from core_models import (
    CHANNELS,
    SIDE,
    SIGMAS,
    conv_denoiser,
    generator,
    mild_denoiser,
    randn,
    relative_error,
    small_noise,
    small_problem,
    start_scaled,
    steady,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    EXACT,
    GradientMismatch,
    GradientMode,
    ModalMap,
    NoRegularizer,
    Problem,
    SamplerMap,
    ddim_steps,
    flow_steps,
    optimize,
    sweep,
)
from comfyui_dno.dno_core.check import image_cosine

STEPS = len(SIGMAS) - 1
LAST_TWO = GradientMode("last k", k=2)
MIDDLE = GradientMode("one step", at=0.5)
LINEAR = GradientMode("linear")
WIDE = 16


@pytest.mark.parametrize(
    ("mode", "steps", "expected"),
    [
        (EXACT, 4, None),
        (LAST_TWO, 4, {2, 3}),
        (GradientMode("last k", k=9), 4, {0, 1, 2, 3}),
        (GradientMode("one step", at=1.0), 4, {3}),
        (GradientMode("one step", at=0.0), 4, {0}),
        (MIDDLE, 5, {2}),
        (MIDDLE, 1, {0}),
        (LINEAR, 4, set()),
    ],
)
def test_a_mode_names_the_steps_that_it_differentiates_and_their_number(
    mode: GradientMode, steps: int, expected: set[int] | None
) -> None:
    assert mode.exact_at(steps) == expected
    assert mode.costs(steps) == (steps if expected is None else len(expected))
    assert mode.biased(steps) == (mode.costs(steps) < steps)
    assert not mode.biased(1) or mode == LINEAR


@pytest.mark.parametrize(
    "given", [{"name": "truncated"}, {"k": 0}, {"at": -0.1}, {"at": 1.5}, {"at": float("nan")}]
)
def test_a_mode_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        GradientMode(**given)


def eps_held(x: Tensor, sigma: Tensor, mask: Tensor | float = 1.0) -> Tensor:
    """D with its eps detached, the mask applied before and after as a noise mask is."""
    inner = x * mask
    eps = (inner - conv_denoiser()(inner, sigma, x)) / sigma.to(x)
    return (inner - sigma.to(x) * eps.detach()) * mask


def by_autograd(
    steps: Any, z: Tensor, v: Tensor, exact_at: Collection[int], mask: Tensor | float = 1.0
) -> Tensor:
    """One graph of the whole run, with eps detached at all steps but those: an independent way."""
    leaf = z.clone().requires_grad_()
    x = start_scaled()(leaf[0])
    for step in steps:
        if step.index in exact_at:
            denoised = conv_denoiser()(x * mask, step.sigma, x) * mask
        else:
            denoised = eps_held(x, step.sigma, mask)
        x = step.a * x + step.b * denoised
        if step.noise is not None:
            x = x + step.c * leaf[step.noise]
    return torch.autograd.grad(x, leaf, v)[0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mode", [EXACT, LAST_TWO, MIDDLE, GradientMode("one step"), LINEAR])
@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_a_mode_is_the_gradient_with_eps_detached_at_the_other_steps(
    kind: str, mode: GradientMode, eta: float
) -> None:
    flow = torch.tensor([0.95, 0.75, 0.5, 0.2, 0.1], dtype=torch.float64)
    steps = ddim_steps(SIGMAS, eta) if kind == "ddim" else flow_steps(flow, eta)
    noises = 1 + sum(step.noise is not None for step in steps)
    z, v = randn(noises, 2, CHANNELS, SIDE, SIDE), randn(2, CHANNELS, SIDE, SIDE, seed=4)
    noise_map = SamplerMap(conv_denoiser(), steps, start_scaled(), mode)
    exact_at = mode.exact_at(len(steps))
    expected = by_autograd(steps, z, v, range(len(steps)) if exact_at is None else exact_at)
    assert relative_error(noise_map.pull(z, noise_map.forward(z), v), expected) < 1e-13


@pytest.mark.parametrize("k", [0, 1, 3, STEPS])
def test_a_cut_sweep_is_the_gradient_with_the_earlier_latents_detached(k: int) -> None:
    """As DRaFT-K trains: no graph before the last k steps."""
    steps = ddim_steps(SIGMAS, 1.0)
    z, v = small_noise(dtype=torch.float64), randn(2, CHANNELS, SIDE, SIDE, seed=4)
    leaf = z.clone().requires_grad_()
    x = start_scaled()(leaf[0])
    for step in steps:
        moved = step.a * x + step.b * conv_denoiser()(x, step.sigma, x)
        x = moved if step.index >= STEPS - k else moved.detach()
        if step.noise is not None:
            x = x + step.c * leaf[step.noise]
    if k == 0:
        expected = torch.zeros_like(z)
    else:
        expected = torch.autograd.grad(x, leaf, v)[0]
    latents = SamplerMap(conv_denoiser(), steps, start_scaled()).forward(z).latents
    last = range(STEPS - k, STEPS)
    found = sweep(conv_denoiser(), steps, latents, z[0], v, start_scaled(), last, cut=True)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert bool(found[0].any()) == (k == STEPS)


def test_outside_a_noise_mask_a_cheap_gradient_is_zero_as_the_exact_one_is() -> None:
    steps = ddim_steps(SIGMAS, 1.0)
    z, v = small_noise(dtype=torch.float64), randn(2, CHANNELS, SIDE, SIDE, seed=4)
    mask = (randn(1, 1, SIDE, SIDE, seed=5) > 0).double()

    def masked(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return conv_denoiser()(x * mask, sigma, z0) * mask

    noise_map = SamplerMap(masked, steps, start_scaled())
    latents = noise_map.forward(z).latents
    for mode in (LAST_TWO, LINEAR):
        exact_at = mode.exact_at(STEPS)
        assert exact_at is not None
        expected = by_autograd(steps, z, v, exact_at, mask)
        found = sweep(
            masked, steps, latents, z[0], v, start_scaled(), exact_at, jacobian=mask.square()
        )
        assert relative_error(found, expected) < 1e-13
    assert not (found * (1 - mask))[:STEPS].any()


def grad_calls(denoise: Any) -> tuple[Any, list[float]]:
    """The denoiser, and the sigmas at which it is asked with gradients on."""
    asked: list[float] = []

    def counting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            asked.append(float(sigma))
        return denoise(x, sigma, z0)

    return counting, asked


def in_mode(mode: GradientMode, denoise: Any = None) -> Problem:
    problem = small_problem(denoise=denoise or mild_denoiser())
    assert isinstance(problem.noise_map, ModalMap)
    return Problem(problem.noise_map.in_mode(mode), problem.decoder, problem.terms)


def climbed(problem: Problem, iterations: int = 4, **options: Any) -> list[Any]:
    options = {"seed": 0, "regularizer": NoRegularizer(), **options}
    run = optimize(problem, small_noise(side=WIDE), steady(), **options)
    return list(islice(run, iterations + 1))


@pytest.mark.parametrize("mode", [EXACT, LAST_TWO, MIDDLE, LINEAR])
def test_an_iteration_differentiates_the_denoiser_as_often_as_its_mode_says(
    mode: GradientMode,
) -> None:
    denoise, asked = grad_calls(mild_denoiser())
    climbed(in_mode(mode, denoise), 3, check_tolerance=None)
    assert len(asked) == 3 * mode.costs(STEPS)


@pytest.mark.parametrize("mode", [LAST_TWO, MIDDLE])
def test_a_biased_mode_is_checked_once_by_the_exact_gradient_and_told_its_cosine(
    mode: GradientMode,
) -> None:
    denoise, asked = grad_calls(mild_denoiser())
    problem = in_mode(mode, denoise)
    first, second, third = climbed(problem, 2)
    assert len(asked) == 2 * mode.costs(STEPS) + STEPS
    assert first.update is None and third.update.cosine is None
    evaluation = problem.evaluate(first.z, (1.0,), differentiate=True)
    assert evaluation.image_gradient is not None
    pair = []
    for each in (mode, EXACT):
        gradient = in_mode(each).gradient(first.z, evaluation, evaluation.image_gradient)
        pair.append(gradient.movedim(1, 0).flatten(1).double())
    expected = torch.einsum("bp,bp->b", *pair) / pair[0].norm(dim=1) / pair[1].norm(dim=1)
    assert torch.allclose(second.update.cosine.double(), expected, atol=1e-6)
    assert bool((expected > 0.1).all()) and bool((expected < 0.9999).all())


@pytest.mark.parametrize("mode", [EXACT, LAST_TWO, MIDDLE, LINEAR])
def test_the_check_changes_nothing_of_a_run(mode: GradientMode) -> None:
    checked, unchecked = climbed(in_mode(mode)), climbed(in_mode(mode), check_tolerance=None)
    for one, other in zip(checked, unchecked, strict=True):
        assert torch.equal(one.z, other.z) and torch.equal(one.scores, other.scores)
    assert all(each.update is None or each.update.cosine is None for each in unchecked)


@pytest.mark.parametrize("mode", [LAST_TWO, MIDDLE])
def test_a_model_that_detaches_is_found_in_a_biased_mode_too(mode: GradientMode) -> None:
    def detached(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return x + (mild_denoiser()(x, sigma, z0) - x).detach()

    with pytest.raises(GradientMismatch):
        climbed(in_mode(mode, detached), 1)


def test_the_linear_mode_never_builds_a_graph_of_the_denoiser_not_even_to_be_checked() -> None:
    denoise, asked = grad_calls(mild_denoiser())
    iterations = climbed(in_mode(LINEAR, denoise))
    assert asked == []
    assert iterations[1].update.cosine is None and not iterations[1].update.inconclusive


def test_a_cheap_gradient_climbs_a_smooth_reward() -> None:
    for mode in (LAST_TWO, MIDDLE, LINEAR):
        iterations = climbed(in_mode(mode), 10)
        assert bool((iterations[-1].objective > iterations[0].objective).all()), mode


def test_the_cosine_of_tiny_gradients_does_not_underflow_and_of_none_is_zero() -> None:
    first, second = (
        torch.randn(3, 2, CHANNELS, SIDE, SIDE, generator=generator(seed)) for seed in (1, 2)
    )
    expected = image_cosine(first.double(), second.double())
    assert torch.allclose(image_cosine(first * 1e-30, second * 1e-25).double(), expected, atol=1e-6)
    assert torch.equal(image_cosine(first * 0, second), torch.zeros(2))


def test_a_map_that_knows_no_modes_is_checked_as_an_exact_one() -> None:
    class Plain:
        def __init__(self, inner: SamplerMap) -> None:
            self.forward, self.pull = inner.forward, inner.pull

    inner = small_problem(denoise=mild_denoiser()).noise_map
    assert isinstance(inner, SamplerMap)
    plain: Any = Plain(inner)
    problem = small_problem()
    right = Problem(plain, problem.decoder, problem.terms)
    assert climbed(right, 1)[1].update.cosine is None
    wrong: Any = Plain(inner.in_mode(MIDDLE))
    with pytest.raises(GradientMismatch):
        climbed(Problem(wrong, problem.decoder, problem.terms), 1)
