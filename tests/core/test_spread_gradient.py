"""The gradient mode "spread k": J^T v at k steps, held in between."""

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
    conv_denoiser,
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
    GradientMode,
    ModalMap,
    NoRegularizer,
    Problem,
    SamplerMap,
    ddim_steps,
    flow_steps,
    noise_count,
    optimize,
)

STEPS = len(SIGMAS) - 1
OPEN = torch.tensor([4.0, 2.6, 1.7, 1.1, 0.7, 0.45, 0.3], dtype=torch.float64)
"""Ends above 0, so that the last step leaves some of v outside the projection."""


def spread(k: int) -> GradientMode:
    return GradientMode("spread k", k)


@pytest.mark.parametrize(
    ("k", "steps", "expected"),
    [
        (1, 50, {49}),
        (2, 50, {24, 49}),
        (3, 50, {16, 33, 49}),
        (10, 50, set(range(4, 50, 5))),
        (3, 4, {1, 2, 3}),
        (4, 4, {0, 1, 2, 3}),
        (9, 4, {0, 1, 2, 3}),
        (5, 1, {0}),
    ],
)
def test_the_steps_are_evenly_spaced_and_the_last_is_one_of_them(
    k: int, steps: int, expected: set[int]
) -> None:
    assert spread(k).exact_at(steps) == expected
    assert spread(k).costs(steps) == min(k, steps)
    assert spread(k).biased(steps) == (k < steps)


@pytest.mark.parametrize("steps", [7, 20, 33])
def test_every_computed_step_stands_for_as_many_as_another_give_or_take_one(steps: int) -> None:
    for k in range(1, steps + 1):
        places = sorted(spread(k).exact_at(steps) or ())
        shares = [b - a for a, b in zip([-1, *places], places, strict=False)]
        assert len(places) == k and sum(shares) == steps
        assert max(shares) - min(shares) <= 1


def test_less_than_one_step_is_refused() -> None:
    for name in ("spread k", "last k"):
        with pytest.raises(ValueError, match="at 0 steps is none. Ask for at least 1"):
            GradientMode(name, 0)  # type: ignore[arg-type]


def by_autograd(denoise: Any, steps: Any, z: Tensor, v: Tensor) -> Tensor:
    """The gradient in all noises, by one graph of the whole run."""
    leaf = z.clone().requires_grad_()
    x = start_scaled(OPEN)(leaf[0])
    for step in steps:
        x = step.a * x + step.b * denoise(x, step.sigma, leaf[0])
        if step.noise is not None:
            x = x + step.c * leaf[step.noise]
    return torch.autograd.grad(x, leaf, v)[0]


def projection(rank: int) -> Tensor:
    """An orthogonal one of the numbers of an image, P = P^T = P^2."""
    basis = torch.linalg.qr(randn(CHANNELS * SIDE * SIDE, rank, seed=7))[0]
    return basis @ basis.T


def times(matrix: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(1) @ matrix.T).view_as(x)


@pytest.mark.parametrize("with_z0", [False, True], ids=["plain", "z_0 in every step"])
@pytest.mark.parametrize("k", range(1, len(OPEN)))
def test_of_a_denoiser_that_projects_it_is_the_gradient_itself(k: int, with_z0: bool) -> None:
    """J = P and a + b = 1: what P holds of v is the same at every step."""
    P, R = projection(11), randn(32, 32, seed=8)
    offset = randn(1, CHANNELS, SIDE, SIDE, seed=9)

    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        direct = sigma * times(P @ R, z0) if with_z0 else 0
        return times(P, x) + offset / (1 + sigma) + direct

    steps = ddim_steps(OPEN, 1.0)
    z = randn(noise_count(steps), 2, CHANNELS, SIDE, SIDE)
    v = randn(2, CHANNELS, SIDE, SIDE, seed=4)
    expected = by_autograd(denoise, steps, z, v)

    def found(mode: GradientMode) -> Tensor:
        noise_map = SamplerMap(denoise, steps, start_scaled(OPEN), mode)
        return noise_map.pull(z, noise_map.forward(z), v)

    assert relative_error(found(spread(k)), expected) < 1e-14
    if k < len(steps):
        assert relative_error(found(GradientMode("last k", k)), expected) > 1e-3


def held_by_hand(
    denoise: Any, steps: Any, latents: Any, z: Tensor, v: Tensor, at: list[int]
) -> Tensor:
    """Every step takes the two products J^T v of the next of the steps `at`; the one with dD/dz_0
    is in proportion to sigma, as the noise is in what a masked denoiser is given."""
    dz = torch.zeros_like(z)
    products: dict[int, tuple[Tensor, Tensor]] = {}
    for i in range(len(steps) - 1, -1, -1):
        source = min(place for place in at if place >= i)
        if source == i:
            pull = torch.func.vjp(
                lambda x, z0, i=i: denoise(x, steps[i].sigma, z0), latents[i], z[0]
            )[1]
            products[i] = pull(v)
        jv, direct = products[source]
        if steps[i].noise is not None:
            dz[steps[i].noise] = steps[i].c * v
        dz[0] += steps[i].b * direct * float(steps[i].sigma) / float(steps[source].sigma)
        v = steps[i].a * v + steps[i].b * jv
    dz[0] += start_scaled()(v)
    return dz


def masked() -> MaskedDenoiser:
    mask = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    return MaskedDenoiser(conv_denoiser(), mask, randn(1, CHANNELS, SIDE, SIDE, seed=6))


@pytest.mark.parametrize("kind", ["plain", "masked"])
@pytest.mark.parametrize(("k", "at"), [(1, [4]), (2, [2, 4]), (3, [1, 3, 4]), (4, [1, 2, 3, 4])])
@pytest.mark.parametrize("steps", [ddim_steps(SIGMAS, 1.0), ddim_steps(SIGMAS, 0.5), "flow"])
def test_of_any_denoiser_it_is_the_recursion_that_holds(
    steps: Any, k: int, at: list[int], kind: str
) -> None:
    if steps == "flow":
        steps = flow_steps(torch.tensor([0.95, 0.75, 0.5, 0.3, 0.2, 0.1]).double(), 1.0)
    denoise = masked() if kind == "masked" else conv_denoiser()
    z = randn(noise_count(steps), 2, CHANNELS, SIDE, SIDE)
    v = randn(2, CHANNELS, SIDE, SIDE, seed=4)
    noise_map = SamplerMap(denoise, steps, start_scaled(), spread(k))
    path = noise_map.forward(z)
    expected = held_by_hand(denoise, steps, path.latents, z, v, at)
    assert relative_error(noise_map.pull(z, path, v), expected) < 1e-13
    exact = noise_map.in_mode(EXACT).pull(z, path, v)
    assert relative_error(expected, exact) > 1e-3, "the two are to be told apart"


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_kept_graphs_give_the_same(k: int, keep: int) -> None:
    steps = ddim_steps(SIGMAS, 1.0)
    z, v = small_noise(dtype=torch.float64), randn(2, CHANNELS, SIDE, SIDE, seed=4)
    noise_map = SamplerMap(masked(), steps, start_scaled(), spread(k), keep=keep)
    path = noise_map.forward_to_pull(z)
    kept = set(path.graphs)
    assert kept == set(sorted(spread(k).exact_at(STEPS) or ())[-keep:])
    found = noise_map.pull(z, path, v)
    assert not path.graphs, "used up"
    assert torch.equal(found, noise_map.pull(z, noise_map.forward(z), v))


def climbed(mode: GradientMode, denoise: Any = None) -> list[Any]:
    problem = small_problem(denoise=denoise or mild_denoiser())
    assert isinstance(problem.noise_map, ModalMap)
    problem = Problem(problem.noise_map.in_mode(mode), problem.decoder, problem.terms)
    run = optimize(problem, small_noise(side=16), steady(), seed=0, regularizer=NoRegularizer())
    return list(islice(run, 4))


@pytest.mark.parametrize("name", ["spread k", "last k"])
@pytest.mark.parametrize("more", [0, 4])
def test_from_all_steps_on_it_is_exact_to_the_bit_and_is_checked_as_such(
    name: Any, more: int
) -> None:
    asked: list[float] = []

    def counting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            asked.append(float(sigma))
        return mild_denoiser()(x, sigma, z0)

    run = climbed(GradientMode(name, STEPS + more), counting)
    assert len(asked) == 3 * STEPS, "no other gradient is computed to be held against it"
    for one, other in zip(run, climbed(EXACT), strict=True):
        assert torch.equal(one.z, other.z) and torch.equal(one.scores, other.scores)
        assert one.update is None or one.update.cosine is None


def test_with_fewer_steps_its_cosine_is_told_and_is_higher_than_that_of_the_last_steps() -> None:
    cosines = []
    for name in ("spread k", "last k"):
        update = climbed(GradientMode(name, 2))[1].update  # type: ignore[arg-type]
        cosines.append(update.cosine.mean().item())
    assert 0 < cosines[1] < cosines[0] < 0.9999
