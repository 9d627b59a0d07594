"""Guidance on the predicted x0, on problems whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.benchmarks.experiments.guidance import Guidance, guided_run, guided_samples
from comfyui_dno.benchmarks.experiments.search import draw_for
from comfyui_dno.dno_core import (
    FunctionDecoder,
    Problem,
    SamplerMap,
    Term,
    ddim_steps,
    noise_count,
)

SIGMAS = torch.tensor([6.0, 3.0, 1.5, 0.7, 0.3, 0.0], dtype=torch.float64)
SHAPE = (3, 2, 2)
PULL = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@dataclass(frozen=True)
class FunctionReward:
    function: Callable[[Tensor], Tensor]
    name: str = "test"
    unit: str = ""
    scale: float = 1.0
    differentiable: bool = True
    modules: tuple[torch.nn.Module, ...] = ()

    def score(self, images: Tensor, context: Any) -> Tensor:
        return self.function((images - 0.5) * 100)


def linear(x0: Tensor) -> Tensor:
    return (x0 * PULL.to(x0)).flatten(1).sum(1)


def square(x0: Tensor) -> Tensor:
    return -(x0 - 1).square().flatten(1).sum(1)


def gaussian(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    """E[x0 | x] where x0 ~ N(0, I)."""
    return x / (1 + sigma**2)


def problem_of(
    function: Callable[[Tensor], Tensor], eta: float, denoise: Any = gaussian
) -> tuple[Problem, SamplerMap]:
    """A latent that is its own picture (at 1/100 around 0.5, so that nothing is clamped)."""
    noise_map = SamplerMap(denoise, ddim_steps(SIGMAS, eta), lambda z0: SIGMAS[0] * z0)
    decoder = FunctionDecoder(lambda x: x / 100 + 0.5)
    return Problem(noise_map, decoder, (Term(FunctionReward(function)),)), noise_map


def noise(noise_map: SamplerMap, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    count = noise_count(noise_map.steps)
    return torch.randn(count, batch, *SHAPE, generator=generator, dtype=torch.float64)


def no_dice(x: Tensor) -> Tensor:
    raise AssertionError("nothing random was asked for")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_at_strength_0_a_guided_run_is_the_plain_run(eta: float) -> None:
    problem, noise_map = problem_of(linear, eta)
    z = noise(noise_map)
    guided = guided_run(problem, noise_map, z, (1.0,), Guidance(0.0), no_dice)
    torch.testing.assert_close(guided.path.final, problem.evaluate(z, (1.0,)).path.final)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_linear_reward_on_a_gaussian_model_samples_the_tilted_model_exactly(eta: float) -> None:
    """p(x0) exp(s r(x0)) = N(s w, I), whose denoiser is (x + sigma^2 s w) / (1 + sigma^2)."""
    strength = 0.7

    def tilted(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return (x + sigma**2 * strength * PULL) / (1 + sigma**2)

    problem, noise_map = problem_of(linear, eta)
    exact, _ = problem_of(linear, eta, tilted)
    z = noise(noise_map)
    guided = guided_run(problem, noise_map, z, (1.0,), Guidance(strength), no_dice)
    expected = exact.evaluate(z, (1.0,)).path.final
    torch.testing.assert_close(guided.path.final, expected, rtol=1e-5, atol=1e-5)


def test_the_perturbed_estimate_is_the_gradient_of_log_mean_exp() -> None:
    """One step from sigma to 0 ends at D': compared with autograd of the formula."""
    strength, sigma = 0.05, 1.5
    noise_map = SamplerMap(
        gaussian, ddim_steps(torch.tensor([sigma, 0.0]), 1.0), lambda z0: sigma * z0
    )
    decoder = FunctionDecoder(lambda x: x / 100 + 0.5)
    problem = Problem(noise_map, decoder, (Term(FunctionReward(square)),))
    z = noise(noise_map)
    draws = [torch.randn(2, *SHAPE, dtype=torch.float64) for _ in range(3)]
    rolls = iter(draws)
    found = guided_run(
        problem, noise_map, z, (1.0,), Guidance(strength, samples=3), lambda x: next(rolls)
    )
    x = (sigma * z[0]).requires_grad_()
    denoised = gaussian(x, torch.tensor(sigma), z[0])
    width = sigma / (1 + sigma**2) ** 0.5
    values = torch.stack([square(denoised + width * draw) for draw in draws])
    objective = torch.logsumexp(strength * values, 0).sum()
    (slope,) = torch.autograd.grad(objective, x)
    expected = denoised.detach() + sigma**2 * slope
    torch.testing.assert_close(found.path.final, expected, rtol=1e-4, atol=1e-4)


def test_recurrence_repeats_every_step_and_returns_to_its_noise_level() -> None:
    asked: list[tuple[float, float]] = []

    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        asked.append((float(sigma), float(x.detach().std())))
        return gaussian(x, sigma, z0)

    problem, noise_map = problem_of(linear, 1.0, denoise)
    z = noise(noise_map, batch=2000)
    dice = torch.Generator().manual_seed(2)
    guided_run(
        problem,
        noise_map,
        z,
        (1.0,),
        Guidance(0.0, recurrence=2),
        lambda x: torch.randn(x.shape, generator=dice, dtype=x.dtype),
    )
    assert [sigma for sigma, _ in asked] == [float(s) for s in SIGMAS[:-1] for _ in range(2)]
    for (sigma, first), (_, second) in zip(asked[2::2], asked[3::2], strict=True):
        assert second**2 == pytest.approx(first**2, rel=0.05), sigma


def test_guided_samples_are_as_many_as_asked_and_no_image_depends_on_its_neighbour() -> None:
    problem, noise_map = problem_of(square, 1.0)
    z = noise(noise_map)
    guidance = Guidance(0.02, samples=2, recurrence=2)

    def three(z: Tensor, seeds: list[int]) -> list[Tensor]:
        runs = guided_samples(problem, noise_map, z, (1.0,), draw_for(seeds, z), guidance)
        return [next(runs)[1].image for _ in range(3)]

    both, second = three(z, [3, 4]), three(z[:, 1:], [4])
    for together, alone in zip(both, second, strict=True):
        torch.testing.assert_close(together[1:], alone)
    assert not torch.equal(both[0], both[1])
