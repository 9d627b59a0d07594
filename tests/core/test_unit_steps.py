"""The optimizer "unit": every step moves every image's noise by the learning rate."""

from __future__ import annotations

import torch

from comfyui_dno.dno_core import NoiseOptimizer


def noise(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed)).double()


def test_a_step_has_the_length_of_the_learning_rate_for_every_image() -> None:
    z, gradient = noise(0), noise(1)
    gradient[:, 1] *= 1e-9
    moved = NoiseOptimizer("unit", z).step(gradient, 0.7) - z
    lengths = moved.movedim(1, 0).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((2,), 0.7, dtype=torch.float64), rtol=1e-6)
    for image in range(2):
        along = gradient[:, image] / gradient[:, image].norm() * 0.7
        assert torch.allclose(moved[:, image], along, rtol=1e-6), "ascends, along the gradient"


def test_an_image_without_a_gradient_stays_where_it_is() -> None:
    z, gradient = noise(0), noise(1)
    gradient[:, 0] = 0
    after = NoiseOptimizer("unit", z).step(gradient, 0.5)
    assert torch.equal(after[:, 0], z[:, 0])
    assert not torch.equal(after[:, 1], z[:, 1])


def test_unit_steps_remember_nothing() -> None:
    z = noise(0)
    stepper = NoiseOptimizer("unit", z)
    first = stepper.step(noise(1), 0.5)
    assert stepper.state() == {}
    fresh = NoiseOptimizer("unit", first)
    fresh.restore(stepper.state())
    assert torch.equal(stepper.step(noise(2), 0.5), fresh.step(noise(2), 0.5))
