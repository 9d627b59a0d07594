"""Spectral whitening: unit mean power in every block, a real projection, plain noise kept."""

from __future__ import annotations

import math

import pytest
import torch
from core_models import randn, relative_error
from torch import Tensor

from comfyui_dno.dno_core import SpectralWhitening

STEP, GRADIENT = SpectralWhitening(), SpectralWhitening(target="gradient")


def power(z: Tensor) -> Tensor:
    return torch.fft.fft2(z, norm="ortho").abs().square()


def blocks_of(height: int, width: int, side: int) -> list[Tensor]:
    """A mask for every rectangle of frequencies, from the definition."""
    fy = torch.fft.fftfreq(height).abs() * 2 * side
    fx = torch.fft.fftfreq(width).abs() * 2 * side
    row, column = (f.long().clamp(max=side - 1) for f in (fy, fx))
    return [(row[:, None] == i) & (column[None, :] == j) for i in range(side) for j in range(side)]


def blurred(z: Tensor) -> Tensor:
    soft = sum(z.roll((i, j), (-2, -1)) for i in range(3) for j in range(3)) / 9
    return 2 * soft + 0.5


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 4), (64, 48, 4), (32, 33, 4)])
def test_every_block_of_every_step_and_channel_gets_unit_mean_power(height, width, side) -> None:
    z = blurred(randn(5, 2, 4, height, width))
    found = power(STEP.project(z))
    for block in blocks_of(height, width, side):
        block = block.clone()
        block[0, 0] = False
        mean = found[..., block].mean(-1)
        assert torch.allclose(mean, torch.ones_like(mean), rtol=1e-10)
    means = found[..., 0, 0].movedim(1, 0).flatten(1).mean(1)
    assert torch.allclose(means, torch.ones_like(means)), "the means of an image are one block"


def test_the_result_is_real_and_only_scaled_block_by_block() -> None:
    """No phase turns: every frequency keeps its direction, and one factor holds for a block."""
    z = blurred(randn(5, 1, 4, 32, 32))
    projected = STEP.project(z)
    assert projected.dtype == z.dtype and projected.shape == z.shape
    ratio = torch.fft.fft2(projected) / torch.fft.fft2(z)
    assert float(ratio.imag.abs().max()) < 1e-10 and float(ratio.real.min()) > 0
    for block in blocks_of(32, 32, 4)[1:]:
        inside = ratio.real[..., block]
        assert torch.allclose(inside, inside[..., :1].expand_as(inside))


def test_projecting_twice_is_projecting_once_and_changes_no_input() -> None:
    for shape in ((5, 2, 4, 32, 32), (2, 1, 3, 17, 24), (1, 1, 4, 8, 8), (3, 1, 4, 2, 16, 16)):
        z = blurred(randn(*shape))
        before = z.clone()
        once = STEP.project(z)
        assert torch.equal(z, before)
        assert relative_error(STEP.project(once), once) < 1e-12


def test_plain_noise_is_hardly_changed_and_blurred_noise_is() -> None:
    z = randn(20, 1, 4, 64, 64)
    assert relative_error(STEP.project(z), z) < 0.06
    assert relative_error(STEP.project(blurred(z)), blurred(z)) > 0.5
    small = randn(20, 1, 4, 8, 8)
    assert relative_error(STEP.project(small), small) < 0.2, "too small for more than one block"


def test_images_do_not_depend_on_their_neighbours() -> None:
    z = blurred(randn(6, 3, 4, 16, 16))
    for regularizer in (STEP, GRADIENT):
        together = regularizer.precondition(regularizer.project(z))
        alone = regularizer.precondition(regularizer.project(z[:, 1:2]))
        assert torch.allclose(together[:, 1:2], alone, rtol=1e-10)


def test_a_direction_is_whitened_with_every_noise_s_norm_kept_and_still_climbs() -> None:
    gradient = blurred(randn(5, 2, 4, 32, 32)) * randn(5, 1, 1, 1, 1, seed=3).abs()
    white = GRADIENT.precondition(gradient)
    norms = gradient.flatten(2).norm(dim=2)
    assert torch.allclose(white.flatten(2).norm(dim=2), norms)
    for noise in range(5):
        for image in range(2):
            assert float((white[noise, image] * gradient[noise, image]).sum()) > 0
    first, *rest = (power(white)[..., block].mean(-1) for block in blocks_of(32, 32, 4)[1:])
    assert all(torch.allclose(mean, first, rtol=1e-6) for mean in rest)


def test_each_target_leaves_the_other_alone() -> None:
    z = blurred(randn(2, 1, 4, 16, 16))
    assert torch.equal(STEP.precondition(z), z) and torch.equal(GRADIENT.project(z), z)
    for regularizer in (STEP, GRADIENT):
        value, gradient = regularizer.penalty(z, 0)
        assert regularizer.gamma == 0 and not value.any() and not gradient.any()


def test_zeros_stay_zeros() -> None:
    """A gradient mode that skips steps leaves their noise without a direction."""
    z = torch.zeros(2, 1, 4, 16, 16)
    assert not STEP.project(z).any() and not GRADIENT.precondition(z).any()
    z[1] = randn(1, 4, 16, 16).float()
    white = GRADIENT.precondition(z)
    assert torch.isfinite(white).all() and not white[0].any() and white[1].any()


def test_a_run_of_shifts_is_held_at_the_power_of_plain_noise() -> None:
    """What a brightness reward does first: every step's mean drifts up."""
    z = randn(50, 1, 4, 32, 32)
    shifted = STEP.project(z + 0.5)
    assert float((z + 0.5).mean()) > 0.45
    assert float(shifted.mean((-2, -1)).square().mean()) == pytest.approx(1 / 1024, rel=1e-6)
    assert math.isclose(float(shifted.square().mean()), 1.0, rel_tol=1e-6)


def test_noise_without_height_and_width_is_refused() -> None:
    for shape in ((3, 2, 5), (3, 2, 4, 16)):
        for act in (STEP.project, GRADIENT.precondition):
            with pytest.raises(ValueError, match="needs noise with height and width"):
                act(randn(*shape))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="target 'noise' is unknown"):
        SpectralWhitening(target="noise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 blocks"):
        SpectralWhitening(blocks=0)
