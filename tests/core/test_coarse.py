"""Coarse schedules: what the full schedule's noise is in fewer steps, and the gradient back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from core_models import (
    CHANNELS,
    SIDE,
    FakeReward,
    MaskedDenoiser,
    conv_denoiser,
    mild_denoiser,
    numeric_gradient,
    randn,
    relative_error,
    small_problem,
    start_scaled,
    steady,
    wave,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    EXACT,
    CoarseMap,
    Coarsening,
    GradientMode,
    ModalMap,
    NoRegularizer,
    Problem,
    SamplerMap,
    Step,
    Term,
    WideMap,
    coarse_sigmas,
    ddim_steps,
    flow_steps,
    noise_count,
    optimize,
)
from comfyui_dno.dno_core.noise_map.coarse import coarse_indices

VE = torch.tensor([14.6, 9.0, 6.1, 4.0, 2.7, 1.9, 1.3, 0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
FLOW = torch.tensor([1.0, 0.93, 0.84, 0.7, 0.6, 0.45, 0.3, 0.15, 0.0], dtype=torch.float64)
KINDS = {
    "ddim": (ddim_steps, VE),
    "ddim, last sigma above 0": (ddim_steps, VE[:-1]),
    "flow": (flow_steps, FLOW),
    "flow, last sigma above 0": (flow_steps, FLOW[:-1]),
}

Steps = tuple[Step, ...]


def schedules(kind: str, eta: float, count: int) -> tuple[Steps, Steps]:
    make, sigmas = KINDS[kind]
    return make(sigmas, eta), make(coarse_sigmas(sigmas, count), eta)


def coarse_map(fine: Steps, coarse: Steps, denoise: Any = None) -> CoarseMap:
    inner = SamplerMap(denoise or conv_denoiser(), coarse, start_scaled(VE))
    return CoarseMap(inner, Coarsening(fine, coarse))


def fine_noise(steps: Steps, batch: int = 2, side: int = SIDE) -> Tensor:
    return randn(noise_count(steps), batch, CHANNELS, side, side, seed=3)


def weights(coarsening: Coarsening, fine: Steps) -> Tensor:
    """The matrix [N_c, N_f] of the map, read off from its values at the unit vectors."""
    unit = torch.eye(noise_count(fine), dtype=torch.float64)
    return coarsening.coarse(unit[:, :, None])[..., 0]


@pytest.mark.parametrize(("steps", "count"), [(50, 8), (20, 5), (7, 3), (5, 4), (4, 4), (9, 1)])
def test_a_coarse_schedule_is_an_even_subset_with_both_ends(steps: int, count: int) -> None:
    kept = coarse_indices(steps, count)
    assert kept[0] == 0 and kept[-1] == steps and len(kept) == count + 1
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    sigmas = torch.linspace(10, 0, steps + 1)
    chosen = coarse_sigmas(sigmas, count)
    assert torch.equal(chosen, sigmas[torch.tensor(kept)])
    assert bool((chosen.diff() < 0).all())


def test_more_steps_than_there_are_leave_the_schedule_as_it_is() -> None:
    assert coarse_sigmas(VE, 10) is VE and coarse_sigmas(VE, 99) is VE
    with pytest.raises(ValueError, match="Use 1 to 10"):
        coarse_sigmas(VE, 0)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_coarse_noises_have_unit_variance_and_are_independent(
    kind: str, eta: float, count: int
) -> None:
    fine, coarse = schedules(kind, eta, count)
    rows = weights(Coarsening(fine, coarse), fine)
    assert len(rows) == noise_count(coarse)
    identity = torch.eye(len(rows), dtype=torch.float64)
    assert torch.allclose(rows @ rows.T, identity, rtol=0, atol=1e-14)
    assert rows[0, 0] == 1 and not rows[0, 1:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_noises_of_a_last_interval_that_ends_without_noise_have_no_part(kind: str) -> None:
    fine, coarse = schedules(kind, 1.0, 3)
    used = weights(Coarsening(fine, coarse), fine).abs().sum(0) > 0
    last = coarse_indices(len(fine), 3)[-2]
    expected = [True] * noise_count(fine)
    if "above" not in kind:
        expected[last + 1 :] = [False] * (noise_count(fine) - last - 1)
    assert used.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_kept_keeps_its_noise_to_the_bit(kind: str) -> None:
    make, sigmas = KINDS[kind]
    steps = make(sigmas, 1.0)
    z = fine_noise(steps).float()
    assert torch.equal(Coarsening(steps, steps).coarse(z), z)
    some = coarse_sigmas(sigmas, len(steps) - 1)
    coarsening = Coarsening(steps, make(some, 1.0))
    merged = sum(len(blend.weights) > 1 for blend in coarsening.blends)
    assert merged <= 1
    for blend, row in zip(coarsening.blends, coarsening.coarse(z), strict=True):
        if len(blend.weights) == 1:
            assert torch.equal(row, z[blend.first])


def constant(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
    return torch.full_like(x, 0.7)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("sigmas", [VE, VE[:-1]])
def test_with_a_constant_denoiser_fine_and_coarse_runs_pass_through_the_same_latents(
    sigmas: Tensor, eta: float, count: int
) -> None:
    """Brownian increments: at the sigmas of both, the latents are equal, and so is x_T."""
    fine, coarse = ddim_steps(sigmas, eta), ddim_steps(coarse_sigmas(sigmas, count), eta)
    z = fine_noise(fine)
    full = SamplerMap(constant, fine, start_scaled(VE)).forward(z)
    short = coarse_map(fine, coarse, constant).forward(z)
    for place, latent in zip(coarse_indices(len(fine), count), short.latents, strict=False):
        assert torch.allclose(latent, full.latents[place], rtol=1e-12, atol=1e-12)
    assert torch.allclose(short.final, full.final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["flow, eta 1", "flow, eta 0.5", "ddim, eta 0.5"])
def test_where_steps_do_not_compose_the_coarse_latents_are_near_and_of_the_right_variance(
    kind: str, shift: float
) -> None:
    """D = 0: every latent is a sum of the noises, read off from unit noises."""
    line = torch.linspace(1, 0, 21, dtype=torch.float64)
    sigmas = shift * line / (1 + (shift - 1) * line)
    make, eta = (flow_steps, 1.0) if "1" in kind else (flow_steps, 0.5)
    if "ddim" in kind:
        make, sigmas = ddim_steps, 14.6 * sigmas**2
    fine, coarse = make(sigmas, eta), make(coarse_sigmas(sigmas, 5), eta)
    z = torch.eye(noise_count(fine), dtype=torch.float64)[:, None, :, None, None]

    def nothing(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return torch.zeros_like(x)

    full = SamplerMap(nothing, fine, lambda z0: z0 * sigmas[0]).forward(z).latents
    inner = SamplerMap(nothing, coarse, lambda z0: z0 * sigmas[0])
    short = CoarseMap(inner, Coarsening(fine, coarse)).forward(z).latents
    for place, latent in zip(coarse_indices(20, 5), short, strict=False):
        one, other = full[place].flatten(), latent.flatten()
        assert torch.allclose(one.norm(), other.norm(), rtol=1e-9)
        assert float(one @ other / one.norm() / other.norm()) > 0.94


def test_with_a_gaussian_the_coarse_run_comes_near_the_fine_one_and_other_noise_does_not() -> None:
    """D of N(0, 1) data is x / (1 + sigma^2): not constant, so the runs differ a little."""

    def gaussian(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        return x / (1 + sigma.to(x) ** 2)

    fine, coarse = schedules("ddim", 1.0, 5)
    z = fine_noise(fine, side=32)
    full = SamplerMap(gaussian, fine, start_scaled(VE)).forward(z).final
    near = coarse_map(fine, coarse, gaussian).forward(z).final
    other = SamplerMap(gaussian, coarse, start_scaled(VE)).forward(z[: noise_count(coarse)]).final
    assert relative_error(near, full) < 0.35
    assert relative_error(other, full) > 0.8


def masked() -> MaskedDenoiser:
    mask = (randn(1, 1, SIDE, SIDE, seed=5) > 0).double() * 0.9
    return MaskedDenoiser(conv_denoiser(), mask, randn(1, CHANNELS, SIDE, SIDE, seed=6))


@pytest.mark.parametrize("denoise", [conv_denoiser, masked], ids=["plain", "masked"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_fine_noise_is_the_slope(
    kind: str, eta: float, count: int, denoise: Callable[[], Any]
) -> None:
    fine, coarse = schedules(kind, eta, count)
    noise_map = coarse_map(fine, coarse, denoise())
    z, weight = fine_noise(fine, 1), randn(1, CHANNELS, SIDE, SIDE, seed=9)

    def value(z: Tensor) -> Tensor:
        return (torch.sin(noise_map.forward(z).final) * weight).flatten(1).sum(1)

    path = noise_map.forward(z)
    found = noise_map.pull(z, path, torch.cos(path.final) * weight)
    expected = numeric_gradient(value, z)
    assert found.shape == z.shape
    usual = expected.flatten(1).norm(dim=1).square().mean().sqrt()
    off = (found - expected).flatten(1).norm(dim=1)
    assert float((off / usual).max()) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_is_the_transpose_of_going_there(kind: str) -> None:
    fine, coarse = schedules(kind, 0.6, 4)
    coarsening, z = Coarsening(fine, coarse), fine_noise(fine)
    other = randn(noise_count(coarse), 2, CHANNELS, SIDE, SIDE, seed=7)
    ahead, back = (coarsening.coarse(z) * other).sum(), (z * coarsening.fine(other)).sum()
    assert torch.allclose(ahead, back, rtol=1e-12)
    kept = z.clone()
    coarsening.coarse(z), coarsening.fine(other)
    assert torch.equal(z, kept)


def test_noises_side_by_side_give_what_each_gives_alone() -> None:
    fine, coarse = schedules("ddim", 1.0, 4)
    noise_map = coarse_map(fine, coarse)
    first, second = fine_noise(fine), fine_noise(fine).flip(0)
    assert isinstance(noise_map, WideMap) and noise_map.probe_room(first, 3) == 3
    wide = noise_map.forward(torch.cat([first, second], 1)).final
    alone = torch.cat([noise_map.forward(z).final for z in (first, second)])
    assert torch.allclose(wide, alone, rtol=1e-12, atol=1e-12)


def test_the_room_for_probes_is_that_of_the_map_within_at_its_own_noise() -> None:
    asked: list[Any] = []

    class Narrow(SamplerMap):
        def probe_room(self, z: Tensor, wanted: int) -> int:
            asked.append((z.shape[0], wanted))
            return 1

    fine, coarse = schedules("ddim", 1.0, 4)
    inner = Narrow(conv_denoiser(), coarse, start_scaled(VE))
    assert CoarseMap(inner, Coarsening(fine, coarse)).probe_room(fine_noise(fine), 5) == 1
    assert asked == [(4, 5)]


def test_a_coarse_map_has_the_modes_and_kept_graphs_of_the_map_within() -> None:
    fine, coarse = schedules("ddim", 1.0, 4)
    exact = coarse_map(fine, coarse)
    assert isinstance(exact, ModalMap) and exact.mode == EXACT and exact.steps == coarse
    z, v = fine_noise(fine), randn(2, CHANNELS, SIDE, SIDE, seed=4)
    one = exact.in_mode(GradientMode("one step"))
    assert one.mode == GradientMode("one step") and exact.mode == EXACT
    path = exact.forward(z)
    inner = one.inner.pull(exact.coarsening.coarse(z), path, v)
    assert torch.equal(one.pull(z, path, v), exact.coarsening.fine(inner))
    assert relative_error(one.pull(z, path, v), exact.pull(z, path, v)) > 0.01
    assert isinstance(exact.inner, SamplerMap)
    keeping = replace(exact, inner=replace(exact.inner, keep=4))
    kept = keeping.forward_to_pull(z)
    assert len(kept.graphs) == 4 and torch.equal(kept.final, path.final)
    assert relative_error(keeping.pull(z, kept, v), exact.pull(z, path, v)) < 1e-14


def test_a_run_on_a_coarse_schedule_climbs_on_the_full_one_too() -> None:
    """The noise it optimizes is noise of the full schedule, and passes the gradient check."""
    fine, coarse = (tuple(steps) for steps in schedules("ddim", 1.0, 5))
    plain = small_problem(denoise=mild_denoiser(), terms=(Term(FakeReward(wave)),))
    loop = Problem(coarse_map(fine, coarse, mild_denoiser()), plain.decoder, plain.terms)
    full_map = SamplerMap(mild_denoiser(), fine, start_scaled(VE))
    full = Problem(full_map, plain.decoder, plain.terms)
    z = fine_noise(fine, side=16).float()
    run = optimize(loop, z, steady(), seed=0, regularizer=NoRegularizer())
    last = list(islice(run, 16))[-1].z
    assert last.shape == z.shape
    before, after = (full.evaluate(each, (1.0,)).objective for each in (z, last))
    assert bool((after > before).all())


def test_a_step_whose_noise_is_lost_to_rounding_has_none_in_the_coarse_run_either() -> None:
    """Zero SNR: a long first step may leave D alone, where the short ones had noise."""
    fine, coarse = schedules("ddim", 1.0, 3)
    first = replace(coarse[0], a=0.0, b=1.0, c=0.0, noise=None)
    rest = [replace(step, noise=step.noise and step.noise - 1) for step in coarse[1:]]
    coarsening = Coarsening(fine, (first, *rest))
    assert len(coarsening.blends) == noise_count((first, *rest)) == 2
    whole = Coarsening(fine, coarse)
    assert coarsening.blends == [whole.blends[0], whole.blends[2]]


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        (ddim_steps(VE, 1.0), ddim_steps(torch.tensor([14.6, 5.0, 0.0]), 1.0)),
        (ddim_steps(VE, 1.0), ddim_steps(VE[1:], 1.0)),
        (ddim_steps(VE, 0.0), ddim_steps(VE[::2], 1.0)),
        (ddim_steps(VE, 1.0), ddim_steps(VE[[0, 5, 9]], 1.0)),
    ],
    ids=["a sigma of its own", "a later start", "another eta", "another end"],
)
def test_steps_that_do_not_belong_together_are_refused(fine: Steps, coarse: Steps) -> None:
    with pytest.raises(ValueError, match="Use"):
        Coarsening(fine, coarse)


def test_noise_of_another_schedule_is_refused() -> None:
    fine, coarse = schedules("ddim", 1.0, 3)
    with pytest.raises(ValueError, match="full schedule"):
        Coarsening(fine, coarse).coarse(fine_noise(coarse))


def test_an_exact_map_within_cannot_be_put_into_a_mode() -> None:
    class Plain:
        forward = pull = staticmethod(partial(print))

    fine, coarse = schedules("ddim", 1.0, 3)
    inner: Any = Plain()
    with pytest.raises(TypeError, match="knows no gradient modes"):
        CoarseMap(inner, Coarsening(fine, coarse)).in_mode(EXACT)
