"""The published algorithm that ours is timed against computes what ours computes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.benchmarks.published import ALL_WASTE, NO_WASTE, Published, Waste, regularization
from comfyui_dno.dno_core import FunctionDecoder, Problem, SamplerMap, Term, ddim_steps
from comfyui_dno.dno_core.probability.arrangements import arrangements, permutation_penalty
from comfyui_dno.rewards.base import PixelReward

SIGMAS = torch.tensor([14.6, 6.0, 2.5, 0.9, 0.0])


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 2, 3, 1, 1)
    return torch.nn.Sequential(*layers).requires_grad_(False)


def denoiser() -> Any:
    net = network()
    return lambda x, sigma: x / (1 + sigma**2) + net(x / (1 + sigma**2).sqrt()) * sigma / 8


def decode(x: Tensor) -> Tensor:
    return 0.5 + 0.1 * torch.nn.functional.interpolate(torch.cat([x, x[:, :1]], 1), scale_factor=2)


def score(image: Tensor) -> Tensor:
    return torch.sin(5 * image).flatten(1).mean(1) + image.square()[:, 0].flatten(1).mean(1)


def noise() -> Tensor:
    return torch.randn(4, 1, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def published(**changes: Any) -> Published:
    values = {"gamma": 0.0, "waste": NO_WASTE, **changes}
    return Published(denoiser(), list(SIGMAS), 1.0, decode, score, noise(), **values)


def ours() -> tuple[float, Tensor]:
    net = denoiser()
    factor = float((1 + SIGMAS[0] ** 2).sqrt())
    steps = ddim_steps(SIGMAS, 1.0)
    noise_map = SamplerMap(lambda x, sigma, z0: net(x, sigma), steps, lambda z0: factor * z0)
    term = Term(PixelReward("wavy", "unit", 1.0, score))
    problem = Problem(noise_map, FunctionDecoder(decode), (term,))
    evaluation = problem.evaluate(noise(), (1.0,), differentiate=True)
    assert evaluation.image_gradient is not None and evaluation.saturated.max() == 0
    gradient = problem.gradient(noise(), evaluation, evaluation.image_gradient)
    return float(evaluation.objective), gradient


@pytest.mark.parametrize("waste", [NO_WASTE, ALL_WASTE], ids=["no waste", "all waste"])
def test_its_reward_and_gradient_are_ours(waste: Waste) -> None:
    run = published(waste=waste)
    value = run.gradient()
    expected, slope = ours()
    assert value == pytest.approx(expected, rel=1e-5)
    assert run.noise.grad is not None
    found = -run.noise.grad[: len(slope)]
    assert float((found - slope).norm() / slope.norm()) < 1e-5
    assert len(run.noise) == len(slope) + waste.unused_noise
    assert not run.noise.grad[len(slope) :].any()


def test_its_regularizer_is_ours_on_the_same_permutations() -> None:
    z = 0.98 * torch.randn(4096, generator=torch.Generator().manual_seed(2))
    permuted = arrangements("uniform", 4096, 4, 5, 1, torch.device("cpu"), True)
    orders = torch.cat(list(permuted.chunks(1))).long()
    orders = [order.view(4, -1).T.flatten() for order in orders]
    leaf = z.clone().requires_grad_()
    value = regularization(leaf, orders)
    (slope,) = torch.autograd.grad(value, leaf)
    expected, gradient = permutation_penalty(z[None], 4, permuted)
    assert value.item() == pytest.approx(float(expected), rel=1e-4)
    assert float((slope - gradient[0]).norm() / slope.norm()) < 1e-3 and slope.any()


@pytest.mark.parametrize("name", [field.name for field in fields(Waste)])
def test_every_waste_can_be_switched_off_by_itself(name: str) -> None:
    seen = {"calls": 0, "decodes": 0, "texts": 0}
    net = denoiser()

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        seen["calls"] += 1
        return net(x, sigma)

    def decoded(x: Tensor) -> Tensor:
        seen["decodes"] += 1
        return decode(x)

    def forget() -> None:
        seen["texts"] += 1

    waste = ALL_WASTE.without(name)
    run = Published(
        counted, list(SIGMAS), 1.0, decoded, score, noise(), waste=waste, permutations=3,
        forget_texts=forget, learning_rate=0.0,
    )  # fmt: skip
    before = run.noise.detach().clone()
    run.iteration()
    assert seen["calls"] == (4 if name == "recomputed" else 8)
    assert seen["decodes"] == (1 if name == "pictures" else 5)
    assert seen["texts"] == (0 if name == "texts" else 1)
    assert len(run.noise) == (4 if name == "unused_noise" else 5)
    assert torch.equal(run.noise, before)
    decays = run._optimizer.param_groups[0]["weight_decay"]
    assert decays == (0.0 if name == "weight_decay" else 0.01)


def test_an_iteration_climbs() -> None:
    run = published(learning_rate=0.02)
    values = [run.iteration() for _ in range(12)]
    assert values[-1] > values[0] + 0.05


def test_the_noise_must_be_that_of_the_schedule() -> None:
    with pytest.raises(ValueError, match="4 noises"):
        Published(denoiser(), list(SIGMAS), 1.0, decode, score, noise()[:3])
