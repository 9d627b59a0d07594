"""A part of a run in which the first noises are held and only the late ones move."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from core_models import (
    CHANNELS,
    SIDE,
    SIGMAS,
    MaskedDenoiser,
    mild_denoiser,
    randn,
    small_noise,
    small_problem,
    start_scaled,
    steady,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    EXACT,
    OPTIMIZERS,
    CoarseMap,
    Coarsening,
    GradientMode,
    Iteration,
    LateMap,
    NoiseOptimizer,
    NoRegularizer,
    Part,
    PermutationRegularizer,
    Problem,
    Regularizer,
    SamplerMap,
    SphereProjection,
    Typicality,
    coarse_sigmas,
    ddim_steps,
    optimize,
)
from comfyui_dno.dno_core.check import image_cosine
from comfyui_dno.dno_core.loop import iteration_key
from comfyui_dno.dno_core.optimizers import clip_per_image

STEPS, FEW, BEGIN = len(SIGMAS) - 1, 2, 2
HELD = BEGIN + 1
SETTINGS = steady(0.05, gamma=0.4, clip=0.8)
PENALTY = PermutationRegularizer(permutations=4)
FULL_FROM, LATE_FROM = 1, 3


def masked() -> MaskedDenoiser:
    mask = torch.linspace(0.2, 1, SIDE)
    latent = randn(1, CHANNELS, SIDE, SIDE, seed=6, dtype=torch.float32)
    return MaskedDenoiser(mild_denoiser(), mask, latent)


def problems(
    mode: GradientMode = EXACT, denoise: Any = None, begin: int = BEGIN
) -> tuple[Problem, Problem, Problem]:
    """Of the same noise: in few steps, in all of them, in all of them for the late noises."""
    denoise = denoise or mild_denoiser()
    fine = ddim_steps(SIGMAS, 1.0)
    coarse = ddim_steps(coarse_sigmas(SIGMAS, FEW), 1.0)
    whole = SamplerMap(denoise, fine, start_scaled(), mode)
    few = CoarseMap(SamplerMap(denoise, coarse, start_scaled(), mode), Coarsening(fine, coarse))
    made = small_problem()
    found = [
        Problem(each, made.decoder, made.terms) for each in (few, whole, LateMap(whole, begin))
    ]
    return found[0], found[1], found[2]


def run(
    count: int, full_from: int | None = FULL_FROM, late_from: int = LATE_FROM, **options: Any
) -> list[Iteration]:
    few, whole, late = options.pop("problems", None) or problems()
    options = {
        "seed": 3,
        "regularizer": PENALTY,
        "typicality": Typicality(permutations=5),
    } | options
    z = options.pop("z", None)
    noise = small_noise() if z is None else z
    parts = () if full_from is None else (Part(full_from, whole),)
    assert isinstance(late.noise_map, LateMap)
    parts += (Part(late_from, late, late.noise_map.held),)
    return list(islice(optimize(few, noise, SETTINGS, parts=parts, **options), count))


def by_hand(count: int, optimizer: str, regularizer: Regularizer) -> list[tuple[Tensor, Tensor]]:
    """Noise and objective of every iteration: whole gradients, one optimizer all along, and in
    the late part the first noises put back where they were."""
    few, whole, _ = problems()
    z, found = small_noise(), []
    stepper = NoiseOptimizer(optimizer, z)
    for index in range(count):
        problem = whole if index >= FULL_FROM else few
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        found.append((z, evaluation.objective))
        assert evaluation.image_gradient is not None
        gradient = problem.gradient(z, evaluation, evaluation.image_gradient)
        held = HELD if index >= LATE_FROM else 0
        gradient[:held] = 0
        pull = regularizer.penalty(z, iteration_key(3, index))[1]
        direction = regularizer.precondition(gradient - 0.4 * pull)
        after = stepper.step(clip_per_image(direction, 0.8)[0], 0.05, regularizer.project)
        after[:held] = z[:held]
        with torch.no_grad():
            stepper._parameter.copy_(after)
        z = after
    return found


REGULARIZERS = {"permutations": PENALTY, "projection": SphereProjection()}


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_few_steps_then_all_then_the_late_noises_with_the_moments_carried_on(
    optimizer: str, regularizer: str
) -> None:
    chosen = REGULARIZERS[regularizer]
    its = run(7, optimizer=optimizer, regularizer=chosen)
    for one, (z, objective) in zip(its, by_hand(7, optimizer, chosen), strict=True):
        assert torch.equal(one.z, z) and torch.equal(one.objective, objective), one.index
    assert [one.steps for one in its] == [FEW] + [STEPS] * 6
    for one, following in zip(its[FULL_FROM:], its[FULL_FROM + 1 :], strict=False):
        moved = (one.z != following.z).flatten(1).any(1).tolist()
        held = HELD if one.index >= LATE_FROM else 0
        assert moved == [False] * held + [True] * (STEPS - held)


@pytest.mark.parametrize("late_from", [0, 2])
def test_a_late_part_may_follow_few_steps_or_be_all_of_a_run(late_from: int) -> None:
    its = run(5, None, late_from)
    assert [one.steps for one in its] == [FEW] * late_from + [STEPS] * (5 - late_from)
    assert all(torch.equal(one.z[:HELD], its[late_from].z[:HELD]) for one in its[late_from:])
    assert not torch.equal(its[-1].z, its[late_from].z)
    whole = problems()[1]
    for one in its[late_from:]:
        assert torch.equal(one.latent, whole.noise_map.forward(one.z).final)


def test_only_its_first_iteration_runs_the_steps_before() -> None:
    asked: list[bool] = []

    def counting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return mild_denoiser()(x, sigma, z0)

    run(7, None, 0, problems=problems(denoise=counting), check_tolerance=None)
    late = STEPS - BEGIN
    assert asked.count(False) == STEPS + 6 * late
    assert asked.count(True) == 6 * (late - 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6])
def test_continued_in_any_part_it_is_the_uninterrupted_run(cut: int, optimizer: str) -> None:
    options = {"optimizer": optimizer, "regularizer": PENALTY}
    whole = run(8, **options)
    at = run(cut + 1, **options)[-1]
    rest = run(8 - cut, z=at.z, start=cut, optimizer_state=at.optimizer_state, **options)
    for one, other in zip(rest, whole[cut:], strict=True):
        assert torch.equal(one.z, other.z) and torch.equal(one.objective, other.objective)
        assert (one.index, one.steps) == (other.index, other.steps)
        assert one.optimizer_state.keys() == other.optimizer_state.keys()
        for name, moment in one.optimizer_state.items():
            assert torch.equal(moment, other.optimizer_state[name])


@pytest.mark.parametrize("denoise", [mild_denoiser(), masked()], ids=["plain", "masked"])
def test_the_check_of_its_first_gradient_passes_and_changes_nothing(denoise: Any) -> None:
    """Along the late noises, which is where the gradient points."""
    options: dict[str, Any] = {
        "problems": problems(denoise=denoise),
        "regularizer": NoRegularizer(),
    }
    checked = run(4, None, 0, **options, check_tolerance=0.01)
    unchecked = run(4, None, 0, **options, check_tolerance=None)
    for one, other in zip(checked, unchecked, strict=True):
        assert torch.equal(one.z, other.z)
    assert checked[1].update is not None and not checked[1].update.inconclusive
    assert bool((checked[1].update.gradient_norm > 0).all())


def test_the_cosine_of_a_biased_mode_is_that_of_the_late_noises_alone() -> None:
    mode = GradientMode("spread k", 1)
    none = NoRegularizer()
    update = run(2, None, 0, problems=problems(mode, begin=1), regularizer=none)[1].update
    assert update is not None and update.cosine is not None
    z, gradients = small_noise(), []
    for each in (mode, EXACT):
        whole = problems(each)[1]
        evaluation = whole.evaluate(z, (1.0,), differentiate=True)
        assert evaluation.image_gradient is not None
        gradients.append(whole.gradient(z, evaluation, evaluation.image_gradient)[2:])
    assert torch.equal(update.cosine, image_cosine(*gradients))
    assert bool((update.cosine < 0.9999).all())
