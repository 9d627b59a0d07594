"""The late steps by themselves: a map that goes on from a latent on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_models import (
    CHANNELS,
    SIDE,
    MaskedDenoiser,
    conv_denoiser,
    numeric_gradient,
    randn,
    relative_error,
    start_scaled,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    EXACT,
    GradientMode,
    LateMap,
    ModalMap,
    SamplerMap,
    Step,
    ddim_steps,
    flow_steps,
    held_noises,
    late_begin,
    noise_count,
)
from comfyui_dno.dno_core.noise_map.sampler import sweep

SIGMAS = torch.tensor([4.0, 2.6, 1.7, 1.1, 0.7, 0.45, 0.2, 0.0], dtype=torch.float64)
FLOW = torch.tensor([0.95, 0.85, 0.7, 0.6, 0.45, 0.3, 0.2, 0.1], dtype=torch.float64)
SCHEDULES: dict[str, tuple[Step, ...]] = {
    "eta 1": ddim_steps(SIGMAS, 1.0),
    "eta 0.5": ddim_steps(SIGMAS, 0.5),
    "flow": flow_steps(FLOW, 1.0),
}
STEPS, BEGIN = 7, 4
HELD = 5
"""Noises of x_4: z_0 .. z_4."""

MODES = [EXACT, *(GradientMode(name, k) for name in ("spread k", "last k") for k in (1, 2, 3))]
MODES += [GradientMode("one step", at=0.5), GradientMode("linear")]

schedules = pytest.mark.parametrize("schedule", SCHEDULES)
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name} {mode.k}")


def masked() -> MaskedDenoiser:
    mask = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    return MaskedDenoiser(conv_denoiser(), mask, randn(1, CHANNELS, SIDE, SIDE, seed=6))


DENOISERS: dict[str, Callable[[], Any]] = {"plain": conv_denoiser, "masked": masked}
denoisers = pytest.mark.parametrize("kind", DENOISERS)


class Counted:
    """A denoiser that notes the sigmas that it was asked at, and whether for a gradient."""

    def __init__(self, denoise: Any) -> None:
        self.denoise = denoise
        self.asked: list[tuple[float, bool]] = []

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        self.asked.append((float(sigma), torch.is_grad_enabled()))
        return self.denoise(x, sigma, z0)

    def taken(self) -> tuple[list[float], list[float]]:
        """Sigmas since the last time: of plain calls, and of those for a gradient."""
        asked, self.asked = self.asked, []
        return [s for s, grad in asked if not grad], [s for s, grad in asked if grad]


def sigmas_of(steps: tuple[Step, ...]) -> list[float]:
    return [float(step.sigma) for step in steps]


def noise(steps: tuple[Step, ...], batch: int = 2, seed: int = 0) -> Tensor:
    return randn(noise_count(steps), batch, CHANNELS, SIDE, SIDE, seed=seed)


def slope(seed: int = 4) -> Tensor:
    return randn(2, CHANNELS, SIDE, SIDE, seed=seed)


def maps(
    schedule: str, kind: str = "plain", mode: GradientMode = EXACT, keep: int = 0
) -> tuple[SamplerMap, LateMap, Counted]:
    """The whole map, the late one of another such map, and the late one's denoiser."""
    counted = Counted(DENOISERS[kind]())
    parts = SCHEDULES[schedule], start_scaled(SIGMAS), mode
    inner = SamplerMap(counted, *parts, keep)
    return SamplerMap(DENOISERS[kind](), *parts), LateMap(inner, BEGIN), counted


def known(late: LateMap, z: Tensor, counted: Counted) -> Tensor:
    """Another noise with the same first ones, which the map has run."""
    late.forward(z)
    counted.taken()
    other = z.clone()
    other[HELD:] += 0.3 * noise(late.steps, z.shape[1], 9)[HELD:]
    return other


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (20, 12), (50, 30)]
)
def test_the_last_two_fifths_of_the_steps_are_late(steps: int, expected: int) -> None:
    assert late_begin(steps) == expected


def test_the_noises_that_a_latent_is_made_of_are_counted() -> None:
    steps = ddim_steps(SIGMAS, 1.0)
    assert [held_noises(steps, begin) for begin in range(STEPS + 1)] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert held_noises(ddim_steps(SIGMAS, 0.0), BEGIN) == 1
    assert held_noises(SCHEDULES["flow"], STEPS) == STEPS + 1
    _, late, _ = maps("eta 1")
    assert late.held == HELD and late.steps == steps


@denoisers
@schedules
def test_only_the_late_steps_are_run_again_until_an_early_noise_or_the_batch_is_another(
    schedule: str, kind: str
) -> None:
    whole, late, counted = maps(schedule, kind)
    sigmas = sigmas_of(late.steps)
    z = noise(late.steps)
    moved = z.clone()
    moved[HELD] += 1
    once_more = moved.clone()
    once_more[-1] *= -1
    early = once_more.clone()
    early[HELD - 1, 1, 0, 0, 0] += 1e-9
    first = early.clone()
    first[0] += 0.1
    alone = first[:, :1]
    visits = [(z, 0), (z, BEGIN), (moved, BEGIN), (once_more, BEGIN), (early, 0), (first, 0)]
    visits += [(alone, 0), (alone.clone(), BEGIN), (first, 0), (first, BEGIN), (z, 0)]
    for run in ("forward", "forward_to_pull"):
        for given, begun in visits if run == "forward" else [(z, BEGIN), *visits[2:]]:
            path, expected = getattr(late, run)(given), whole.forward(given)
            assert counted.taken() == (sigmas[begun:], [])
            assert torch.equal(path.final, expected.final)
            assert len(path.latents) == STEPS
            for latent, other in zip(path.latents, expected.latents, strict=True):
                assert torch.equal(latent, other)


def test_noise_that_is_changed_in_place_is_other_noise() -> None:
    whole, late, counted = maps("eta 1")
    z = noise(late.steps)
    late.forward(z)
    counted.taken()
    z[1] += 1
    assert torch.equal(late.forward(z).final, whole.forward(z).final)
    assert counted.taken()[0] == sigmas_of(late.steps)


@denoisers
@modes
@schedules
def test_the_late_noises_have_the_whole_maps_gradient_and_the_others_none(
    schedule: str, mode: GradientMode, kind: str
) -> None:
    whole, late, counted = maps(schedule, kind, mode)
    z = noise(late.steps)
    expected = whole.pull(z, whole.forward(z), slope())
    assert expected[0].any()
    for given in (z, z):  # after a whole run, and after one that goes on
        found = late.pull(given, late.forward(given), slope())
        assert torch.equal(found[HELD:], expected[HELD:])
        assert not found[:HELD].any()
        assert found.shape == expected.shape and found.dtype == expected.dtype


@denoisers
@schedules
def test_it_is_the_slope_that_central_differences_show(schedule: str, kind: str) -> None:
    whole, late, counted = maps(schedule, kind)
    z, v = known(late, noise(late.steps), counted), slope()

    def projected(moving: Tensor) -> Tensor:
        return (whole.forward(torch.cat([z[:HELD], moving])).final * v).flatten(1).sum(1)

    found = late.pull(z, late.forward(z), v)[HELD:]
    assert relative_error(found, numeric_gradient(projected, z[HELD:])) < 1e-8


@modes
def test_only_the_steps_after_the_first_late_one_are_differentiated(mode: GradientMode) -> None:
    _, late, counted = maps("eta 1", "plain", mode)
    z = known(late, noise(late.steps), counted)
    path = late.forward(z)
    counted.taken()
    late.pull(z, path, slope())
    exact_at = mode.exact_at(STEPS)
    wanted = [i for i in range(BEGIN + 1, STEPS) if exact_at is None or i in exact_at]
    sigmas = sigmas_of(late.steps)
    assert counted.taken() == ([], [sigmas[i] for i in reversed(wanted)])


@pytest.mark.parametrize("begin", range(1, STEPS))
def test_a_sweep_that_begins_at_any_step_leaves_what_came_before(begin: int) -> None:
    steps = SCHEDULES["flow"]
    z, counted = noise(steps), Counted(masked())
    latents = SamplerMap(masked(), steps, start_scaled(SIGMAS)).forward(z).latents

    def swept(begin: int) -> Tensor:
        return sweep(counted, steps, latents, z[0], slope(), start_scaled(SIGMAS), begin=begin)

    whole = swept(0)
    counted.taken()
    found = swept(begin)
    assert len(counted.asked) == STEPS - begin - 1
    assert not found[: begin + 1].any()
    assert torch.equal(found[begin + 1 :], whole[begin + 1 :]) and found[begin + 1 :].any()


@modes
@pytest.mark.parametrize("keep", [1, 2, 9])
@pytest.mark.parametrize("begun", [0, BEGIN])
def test_graphs_are_kept_where_they_are_used_and_give_the_same(
    begun: int, keep: int, mode: GradientMode
) -> None:
    _, late, counted = maps("eta 1", "masked", mode, keep)
    _, plain, _ = maps("eta 1", "masked", mode)
    z = known(late, noise(late.steps), counted) if begun else noise(late.steps)
    path = late.forward_to_pull(z)
    exact_at = mode.exact_at(STEPS)
    wanted = [i for i in range(BEGIN + 1, STEPS) if exact_at is None or i in exact_at]
    kept = wanted[max(len(wanted) - keep, 0) :]
    assert sorted(path.graphs) == kept
    ahead = counted.taken()
    assert len(ahead[0]) + len(ahead[1]) == STEPS - begun
    found = late.pull(z, path, slope())
    assert not path.graphs, "used up"
    assert len(counted.taken()[1]) == len(wanted) - len(kept)
    assert torch.equal(found, plain.pull(z, plain.forward(z), slope()))


def test_in_another_mode_it_knows_the_same_latents() -> None:
    _, late, counted = maps("eta 1", "plain", GradientMode("spread k", 1))
    assert isinstance(late, ModalMap) and late.mode == GradientMode("spread k", 1)
    z = known(late, noise(late.steps), counted)
    exact = late.in_mode(EXACT)
    assert exact.mode == EXACT and (exact.begin, exact.held) == (BEGIN, HELD)
    path = exact.forward(z)
    assert counted.taken()[0] == sigmas_of(late.steps)[BEGIN:]
    whole, _, _ = maps("eta 1")
    expected = whole.pull(z, whole.forward(z), slope())[HELD:]
    assert torch.equal(exact.pull(z, path, slope())[HELD:], expected)
    assert not torch.equal(late.pull(z, path, slope())[HELD:], expected)
