"""The samplers' coefficients against formulas that were derived another way."""

from __future__ import annotations

import math

import pytest
import torch

from comfyui_dno.dno_core import ddim_steps, flow_steps, noise_count, sample, vp_sigmas

FALLING = torch.tensor([14.6, 6.3, 2.1, 0.7, 0.03, 0.0], dtype=torch.float64)
FLOW = torch.tensor([1.0, 0.83, 0.55, 0.3, 0.12, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_ddim_coefficients_are_those_of_the_ddim_paper(eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, in alpha_bar, carried to sigma space."""
    steps = ddim_steps(FALLING, eta)
    for step, s, following in zip(steps, FALLING[:-1], FALLING[1:], strict=True):
        now, then = 1 / (1 + float(s) ** 2), 1 / (1 + float(following) ** 2)
        std = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        direction = math.sqrt(1 - then - std**2)
        # x_prev = sqrt(then) D + direction eps + std z, in units of sqrt(then); eps = (x - D) / s
        a = direction / math.sqrt(then) / float(s)
        assert step.a == pytest.approx(a, abs=1e-12)
        assert step.b == pytest.approx(1 - a, abs=1e-12)
        assert step.c == pytest.approx(std / math.sqrt(then), abs=1e-12)
        assert step.sigma == s


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "make, signal", [(ddim_steps, lambda s: 1.0), (flow_steps, lambda s: 1 - s)]
)
def test_a_step_of_a_perfect_denoiser_keeps_the_noise_level(make, signal, eta: float) -> None:
    """With D = x0 and x = signal(s) x0 + s eps, x' must be signal(s') x0 plus noise of size s'."""
    sigmas = FALLING if make is ddim_steps else FLOW
    for step, s, following in zip(make(sigmas, eta), sigmas[:-1], sigmas[1:], strict=True):
        s, following = float(s), float(following)
        assert step.a * signal(s) + step.b == pytest.approx(signal(following), abs=1e-12)
        assert math.hypot(step.a * s, step.c) == pytest.approx(following, abs=1e-12)


def test_flow_steps_at_eta_one_step_down_by_the_squared_ratio() -> None:
    """down = s'^2 / s, and a is what is left of x after the rescaling to 1 - s'."""
    for step, s, following in zip(flow_steps(FLOW, 1.0), FLOW[:-1], FLOW[1:], strict=True):
        s, following = float(s), float(following)
        if following == 0:
            continue
        down = following**2 / s
        assert step.a == pytest.approx((1 - following) / (1 - down) * down / s, abs=1e-12)
        assert step.c > 0


def test_the_noise_scale_of_flow_steps_scales_only_the_injected_noise() -> None:
    plain, louder = flow_steps(FLOW, 0.7), flow_steps(FLOW, 0.7, noise_scale=1.5)
    for one, other in zip(plain, louder, strict=True):
        assert (other.a, other.b, other.c) == pytest.approx((one.a, one.b, 1.5 * one.c))


@pytest.mark.parametrize("make, sigmas", [(ddim_steps, FALLING), (flow_steps, FLOW)])
def test_the_noises_in_use_are_counted(make, sigmas: torch.Tensor) -> None:
    steps = len(sigmas) - 1
    assert noise_count(make(sigmas, 1.0)) == steps, "the last step to 0 injects nothing"
    assert noise_count(make(sigmas[:-1], 1.0)) == steps, "a last sigma above 0 injects once more"
    assert noise_count(make(sigmas, 0.0)) == 1, "at eta 0 only the starting noise is used"
    assert [step.noise for step in make(sigmas, 0.5)] == [1, 2, 3, 4, None]
    assert make(sigmas, 0.5)[-1].c == 0


def test_the_step_to_zero_returns_the_denoised_prediction() -> None:
    last = ddim_steps(FALLING, 1.0)[-1]
    assert (last.a, last.b, last.c) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [],
        [1.0, 1.0, 0.0],
        [0.5, 1.0, 0.0],
        [1.0, 0.5, -0.1],
        [1.0, float("nan"), 0.0],
        [float("inf"), 1.0, 0.0],
        [1.0, 0.0, 0.0],
    ],
)
@pytest.mark.parametrize("make", [ddim_steps, flow_steps])
def test_a_schedule_that_does_not_fall_to_zero_is_refused(make, values: list[float]) -> None:
    with pytest.raises(ValueError, match="fall|starts at 1 or below"):
        make(torch.tensor(values), 1.0)


@pytest.mark.parametrize("make", [ddim_steps, flow_steps])
@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_its_range_is_refused(make, eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        make(FLOW, eta)


def test_a_flow_schedule_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="flow"):
        flow_steps(torch.tensor([2.0, 1.0, 0.0]), 1.0)


def test_noise_for_another_schedule_is_refused() -> None:
    steps = ddim_steps(FALLING, 1.0)
    with pytest.raises(ValueError, match="holds 6 tensors and the steps use 5"):
        sample(lambda x, sigma, z0: x, steps, torch.zeros(6, 1, 1, 1, 1), lambda z0: z0)


def test_vp_sigmas_invert_alpha_bar() -> None:
    alphas = torch.tensor([0.999, 0.5, 0.01], dtype=torch.float64)
    assert torch.allclose(1 / (1 + vp_sigmas(alphas) ** 2), alphas, atol=0, rtol=1e-13)
