"""Structured permutations: the plain formula along whole segments, and valid bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from core_models import generator, numeric_gradient, randn, relative_error
from torch import Tensor

from comfyui_dno.benchmarks.detection import rows_of
from comfyui_dno.dno_core import PermutationRegularizer
from comfyui_dno.dno_core.probability.arrangements import (
    arrangements,
    lowest_log_p,
    permutation_penalty,
)
from comfyui_dno.dno_core.probability.permutations import Permutations
from comfyui_dno.dno_core.probability.segments import SegmentPermutations, segment_count

CPU = torch.device("cpu")
LOG_2 = math.log(2)


def made(n: int, k: int = 4, count: int = 24, seed: int = 3) -> SegmentPermutations:
    return SegmentPermutations(n, k, count, seed, CPU)


def rows_in(permuted: SegmentPermutations) -> list[Tensor]:
    """Indices [m,k] of the numbers that share a row, by following the numbers 0 .. n-1."""
    numbers = torch.arange(permuted.n, dtype=torch.float64)[None]
    return [
        view.cut(numbers)[0].long()[rows].movedim(1, 2).reshape(-1, permuted.k)
        for view in permuted.views
        for rows in view.rows
    ]


def log_half_bounds(rows: Tensor) -> tuple[Tensor, Tensor]:
    m, k = rows.shape
    m1 = torch.linalg.vector_norm(rows.mean(0))
    m2 = torch.linalg.matrix_norm(rows.T @ rows / m - torch.eye(k, dtype=rows.dtype), ord=2)
    over = torch.clamp(torch.sqrt(1 + m2) - 1 - math.sqrt(k / m), min=0)
    return (
        torch.clamp(-m * m1**2 / (2 * k), max=-LOG_2),
        torch.clamp(-m * over**2 / 2, max=-LOG_2),
    )


def direct(z: Tensor, indices: Sequence[Tensor], k: int) -> tuple[Tensor, float]:
    """L_reg and P(z) of one image's numbers, one arrangement after another."""
    own = log_half_bounds(z[: len(z) // k * k].view(-1, k))
    permuted = [log_half_bounds(z[rows]) for rows in indices]
    mean = torch.stack([a + b for a, b in permuted]).mean()
    lowest = min(2 * math.exp(log.item()) for pair in [own, *permuted] for log in pair)
    return -(own[0] + own[1] + mean), lowest


@pytest.mark.parametrize(("n", "k"), [(400, 4), (403, 4), (5000, 3), (4099, 4), (2100, 7)])
def test_the_regularizer_is_its_formula_along_segments(n: int, k: int) -> None:
    """Value, gradient (autograd of the formula) and P(z), of three images at once."""
    permuted = made(n, k)
    flat = randn(3, n) * torch.tensor([[1.0], [1.1], [0.7]]) + 0.04
    flat[2, ::7] += 1.5
    before = flat.clone()
    value, gradient = permutation_penalty(flat, k, permuted)
    log_p = lowest_log_p(flat, k, permuted)
    assert torch.equal(flat, before)
    for image in range(3):
        leaf = flat[image].clone().requires_grad_()
        expected, lowest = direct(leaf, rows_in(permuted), k)
        (slope,) = torch.autograd.grad(expected, leaf)
        assert value[image].item() == pytest.approx(expected.item(), rel=1e-10)
        assert torch.allclose(gradient[image], slope, rtol=1e-8, atol=1e-12)
        assert math.exp(log_p[image]) == pytest.approx(lowest, rel=1e-10)
        assert bool(slope.any())


def test_the_gradient_is_the_slope() -> None:
    z = randn(2, 2, 1, 12, 11) * 1.15 + 0.1
    regularizer = PermutationRegularizer(permutations=16)
    assert segment_count(2 * 12 * 11, 4) > 0
    found = regularizer.penalty(z, 5)[1]
    expected = numeric_gradient(lambda moved: regularizer.penalty(moved, 5)[0], z)
    assert bool(expected.any(0).any()) and relative_error(found, expected) < 1e-7


def test_single_precision_gives_the_same_gradient() -> None:
    flat = randn(2, 50_000) * 1.02 + 0.01
    permuted = made(50_000, count=100)
    value, gradient = permutation_penalty(flat, 4, permuted)
    value32, gradient32 = permutation_penalty(flat.float(), 4, permuted)
    assert value32.dtype == gradient32.dtype == torch.float32
    assert torch.allclose(value32.double(), value, rtol=1e-4)
    assert relative_error(gradient32.double(), gradient) < 1e-3


@pytest.mark.parametrize(("n", "k"), [(256, 4), (403, 4), (5000, 3), (20_480, 4), (70_001, 64)])
def test_every_arrangement_takes_each_number_at_most_once_and_nearly_all(n: int, k: int) -> None:
    seen = torch.zeros(n, dtype=torch.long)
    indices = rows_in(made(n, k, count=40))
    assert len(indices) == 40
    for rows in indices:
        counts = torch.bincount(rows.flatten(), minlength=n)
        assert int(counts.max()) == 1 and float(counts.double().mean()) > 0.8
        seen += counts
    assert int(seen.min()) > 0, "what one view leaves out another takes"


def test_arrangements_of_one_set_all_differ_also_in_their_columns() -> None:
    indices = rows_in(made(8192, count=100))
    columns = {tuple(sorted(rows[:, 0].tolist())[:200]) for rows in indices}
    assert len(columns) > 95


def test_many_lags_short_and_long_are_looked_at() -> None:
    """In interleaved noise some arrangements hold pairs at one distance only: d, 2 d, 3 d."""
    found = set()
    for rows in rows_in(made(8192, count=100)):
        distances = torch.stack([rows[:, i] - rows[:, j] for i, j in [(1, 0), (2, 1), (3, 2)]])
        values, counts = distances.abs().unique(return_counts=True)
        found |= {int(v) for v, c in zip(values, counts, strict=True) if c > 1000}
    assert len(found) > 60
    assert {lag for lag in found if lag < 64} and {lag for lag in found if lag > 1000}


def test_the_key_decides_and_the_global_generator_is_left_alone() -> None:
    flat = randn(1, 5000) * 1.1
    state = torch.random.get_rng_state()
    first, again, other = (permutation_penalty(flat, 4, made(5000, seed=s)) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first[1], again[1]) and torch.equal(first[0], again[0])
    assert not torch.equal(first[1], other[1])


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    flat = randn(3, 5000) * 1.05
    permuted = made(5000)
    value, gradient = permutation_penalty(flat, 4, permuted)
    for image in range(3):
        alone = permutation_penalty(flat[image : image + 1], 4, permuted)
        assert value[image].item() == pytest.approx(alone[0].item(), rel=1e-12)
        assert torch.allclose(gradient[image], alone[1][0], rtol=1e-10, atol=1e-14)


def test_noise_too_small_for_segments_gets_uniform_permutations() -> None:
    for n, k in ((64, 4), (255, 4), (60_000, 64)):
        assert isinstance(arrangements("structured", n, k, 5, 0, CPU), Permutations)
    for n, k in ((256, 4), (70_000, 64)):
        assert isinstance(arrangements("structured", n, k, 5, 0, CPU), SegmentPermutations)
        assert isinstance(arrangements("uniform", n, k, 5, 0, CPU), Permutations)
    with pytest.raises(ValueError, match="family 'affine' is unknown"):
        arrangements("affine", 256, 4, 5, 0, CPU)  # type: ignore[arg-type]


def test_the_two_families_are_reached_through_the_regularizer() -> None:
    z = randn(2, 2, 1, 32, 32) * 1.05 + 0.02
    flat = z.movedim(1, 0).flatten(1)
    for family in ("structured", "uniform"):
        permuted = arrangements(family, 2048, 4, 30, 9, CPU)  # type: ignore[arg-type]
        value, gradient = PermutationRegularizer(1.0, 4, 30, family).penalty(z, 9)  # type: ignore[arg-type]
        expected, slope = permutation_penalty(flat, 4, permuted)
        assert torch.equal(value, expected)
        assert torch.equal(gradient.movedim(1, 0).flatten(1), slope)


@pytest.mark.parametrize("n", [1024, 8192])
def test_p1_and_p2_bound_the_chance_of_their_deviation_under_segments(n: int) -> None:
    """Of all arrangements of Gaussian noise a share of at most t has p <= t (3.5 standard errors,
    taken over the draws, as the arrangements of one draw go together)."""
    draws = 3000
    permuted = made(n, count=100)
    g = generator(21)
    logs: list[list[Tensor]] = []
    for _ in range(draws // 100):
        z = torch.randn(100, n, generator=g)
        found = list(permuted.statistics(z, 4))
        logs.append(
            [torch.cat([getattr(f, name) for f in found], 1) for name in ("log_p1", "log_p2")]
        )
    for which in (0, 1):
        p = torch.cat([part[which] for part in logs]).double().exp()
        assert p.shape == (draws, 100)
        for t in (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001):
            shares = (p <= t).double().mean(1)
            assert float(shares.mean()) <= t + 3.5 * float(shares.std()) / math.sqrt(draws), t
        if which == 0:
            assert float((p < 1).double().mean()) > 0.1, "bounds that never act would pass"


def test_rows_that_the_benchmark_plants_into_are_those_that_are_compared() -> None:
    permuted = made(5000)
    assert all(
        torch.equal(a, b) for a, b in zip(rows_of(permuted, 5000), rows_in(permuted), strict=True)
    )
    flat = randn(1, 403)
    uniform = Permutations(403, 6, 1, CPU)
    found = next(uniform.statistics(flat, 4))
    for index, rows in enumerate(rows_of(uniform, 403)):
        assert torch.allclose(found.mean[0, index], flat[0][rows].mean(0))
