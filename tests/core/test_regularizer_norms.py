"""ReNO's norm regularizer and the projection to the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from core_models import numeric_gradient, randn, relative_error
from torch import Tensor

from comfyui_dno.dno_core import NormRegularizer, SphereProjection


def reno(z: Tensor, image: int) -> float:
    """|z|^2 / 2 - (n - 1) log |z| of one image."""
    numbers = z[:, image].flatten()
    norm = float(numbers.norm())
    return norm**2 / 2 - (len(numbers) - 1) * math.log(norm)


def test_it_is_the_likelihood_of_the_norm_less_its_best_value() -> None:
    z = randn(3, 2, 2, 4, 4) * torch.tensor([1.1, 0.8], dtype=torch.float64).view(1, 2, 1, 1, 1)
    n = 3 * 2 * 4 * 4
    best = (n - 1) / 2 - (n - 1) / 2 * math.log(n - 1)
    value, _ = NormRegularizer().penalty(z, 0)
    for image in range(2):
        assert value[image].item() == pytest.approx(reno(z, image) - best, rel=1e-10)


def test_its_gradient_is_the_slope() -> None:
    z = randn(2, 2, 1, 3, 3) * 1.2
    regularizer = NormRegularizer()
    found = regularizer.penalty(z, 0)[1]
    expected = numeric_gradient(lambda moved: regularizer.penalty(moved, 0)[0], z)
    assert relative_error(found, expected) < 1e-8


def test_gaussian_noise_pays_half_a_unit_on_average_whatever_its_size() -> None:
    """|z|^2 varies like a normal number: twice the penalty is a chi-square of 1 degree."""
    for shape in ((1, 2000, 16), (4, 400, 8, 16, 16)):
        value, _ = NormRegularizer().penalty(randn(*shape), 0)
        assert float(value.mean()) == pytest.approx(0.5, abs=3.5 * math.sqrt(0.5 / shape[1]))


def test_single_precision_keeps_the_small_difference_of_large_numbers() -> None:
    z = randn(50, 1, 4, 64, 64)
    value, gradient = NormRegularizer().penalty(z, 0)
    value32, gradient32 = NormRegularizer().penalty(z.float(), 0)
    assert value32.item() == pytest.approx(value.item(), abs=1e-3)
    assert relative_error(gradient32.double(), gradient) < 1e-2


def test_noise_of_zero_has_a_finite_penalty_and_stays_where_it_is() -> None:
    z = torch.zeros(2, 1, 4)
    value, gradient = NormRegularizer().penalty(z, 0)
    assert torch.isfinite(value).all() and value > 10 and not gradient.any()
    assert not SphereProjection().project(z).any()


def test_the_sphere_has_radius_root_n_for_every_image_and_twice_is_once() -> None:
    z = randn(3, 2, 2, 4, 4) * torch.tensor([3.0, 0.2], dtype=torch.float64).view(1, 2, 1, 1, 1)
    before = z.clone()
    projected = SphereProjection().project(z)
    assert torch.equal(z, before)
    norms = projected.movedim(1, 0).flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full((2,), math.sqrt(96), dtype=torch.float64))
    for image in range(2):
        ratio = projected[:, image] / z[:, image]
        assert torch.allclose(ratio, ratio.flatten()[0])
    assert torch.allclose(SphereProjection().project(projected), projected, rtol=1e-14)


def test_the_sphere_has_no_penalty_and_leaves_the_direction_alone() -> None:
    z = randn(2, 2, 3)
    sphere = SphereProjection()
    value, gradient = sphere.penalty(z, 0)
    assert not value.any() and not gradient.any() and sphere.gamma == 0
    assert torch.equal(sphere.precondition(z), z)
