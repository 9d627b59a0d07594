"""The paper's regularizer and P(z) against their formula, and on Gaussian and other noise."""

from __future__ import annotations

import math

import pytest
import torch
from core_models import generator, numeric_gradient, randn, relative_error
from torch import Tensor

from comfyui_dno.dno_core import (
    NoRegularizer,
    PermutationRegularizer,
    Typicality,
    null_distribution,
)
from comfyui_dno.dno_core.probability import bounds, permutations
from comfyui_dno.dno_core.probability.arrangements import lowest_log_p, permutation_penalty
from comfyui_dno.dno_core.probability.permutations import Permutations

CPU = torch.device("cpu")
K = 4


def direct(z: Tensor, orders: list[Tensor], k: int = K) -> tuple[Tensor, float]:
    """L_reg and P(z) of one image's n numbers, one arrangement after another."""
    m = len(z) // k
    log2 = math.log(2)

    def log_half_bounds(numbers: Tensor) -> tuple[Tensor, Tensor]:
        rows = numbers[: m * k].reshape(m, k)
        m1 = torch.linalg.vector_norm(rows.mean(0))
        m2 = torch.linalg.matrix_norm(rows.T @ rows / m - torch.eye(k, dtype=rows.dtype), ord=2)
        over = torch.clamp(torch.sqrt(1 + m2) - 1 - math.sqrt(k / m), min=0)
        return (
            torch.clamp(-m * m1**2 / (2 * k), max=-log2),
            torch.clamp(-m * over**2 / 2, max=-log2),
        )

    own = log_half_bounds(z)
    permuted = [log_half_bounds(z[order]) for order in orders]
    penalty = -(sum(own) + sum(a + b for a, b in permuted) / len(orders))  # type: ignore[operator]
    lowest = min(2 * math.exp(log.item()) for pair in [own, *permuted] for log in pair)
    return penalty, lowest  # type: ignore[return-value]


def row_statistics(rows: Tensor) -> bounds.RowStatistics:
    """Of row matrices [B,P,m,k]."""
    return bounds.row_statistics(rows.mT)


def orders_of(n: int, count: int, seed: int, k: int = K) -> list[Tensor]:
    """The permutations one by one, drawn here and not by the class; k numbers a row."""
    g = generator(seed)
    drawn = [torch.randperm(n, generator=g) for _ in range(count)]
    return [order[: n // k * k].view(k, -1).T.flatten() for order in drawn]


@pytest.mark.parametrize("n", [400, 403])
@pytest.mark.parametrize("k", [4, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_regularizer_is_its_formula(n: int, k: int, batch: int) -> None:
    """Value, gradient (autograd of the formula) and P(z); a remainder of numbers is dropped."""
    flat = randn(batch, n) * 1.15 + 0.05
    flat[0] = (flat[0] - flat[0].mean()) / flat[0].std()
    if batch > 1:
        flat[1] *= 0.3  # the smallest eigenvalue is the one that counts
    made = Permutations(n, 25, 11, CPU)
    value, gradient = permutation_penalty(flat, k, made)
    log_p = lowest_log_p(flat, k, made)
    for image in range(batch):
        leaf = flat[image].clone().requires_grad_()
        expected, lowest = direct(leaf, orders_of(n, 25, 11, k), k)
        (slope,) = torch.autograd.grad(expected, leaf)
        assert value[image].item() == pytest.approx(expected.item(), rel=1e-12)
        assert torch.allclose(gradient[image], slope, rtol=1e-9, atol=1e-12)
        assert math.exp(log_p[image]) == pytest.approx(lowest, rel=1e-12)
    assert bool(gradient.any())


def test_the_regularizer_takes_noise_with_the_batch_second() -> None:
    z = randn(3, 2, 2, 4, 4) * 1.2
    value, gradient = PermutationRegularizer(permutations=5).penalty(z, key=3)
    assert value.shape == (2,) and gradient.shape == z.shape
    for image in range(2):
        numbers = z[:, image].flatten().clone().requires_grad_()
        expected, _ = direct(numbers, orders_of(96, 5, 3))
        (slope,) = torch.autograd.grad(expected, numbers)
        assert value[image].item() == pytest.approx(expected.item(), rel=1e-12)
        assert torch.allclose(gradient[:, image].flatten(), slope, atol=1e-12)


def test_the_gradient_is_the_slope() -> None:
    z = randn(2, 2, 1, 7, 3) * 1.25 + 0.1
    regularizer = PermutationRegularizer(permutations=4)
    found = regularizer.penalty(z, 5)[1]
    expected = numeric_gradient(lambda moved: regularizer.penalty(moved, 5)[0], z)
    assert bool(expected.any(0).any()) and relative_error(found, expected) < 1e-8


def balanced(m: int, mean: float = 0.0, stretch: float = 1.0, shrink: float = 1.0) -> Tensor:
    """Rows of exact statistics: column means `mean`, before that Y^T Y / m = diag(stretch, 1,
    1, 1) shrink."""
    rows = randn(m, K)
    rows = rows - rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / m)).T
    rows[:, 0] *= math.sqrt(stretch)
    return (rows * math.sqrt(shrink) + mean).flatten()[None]


def test_each_term_has_exactly_zero_gradient_while_inactive_and_the_right_one_when_awake() -> None:
    m = 4096
    m1_wakes, m2_wakes = 0.0368, 0.1018  # method.md's table: n = 16,384, k = 4
    quiet = balanced(m, mean=0.95 * m1_wakes / 2)
    shifted = balanced(m, mean=1.05 * m1_wakes / 2)
    scaled = balanced(m, stretch=1 + 1.02 * m2_wakes)
    nearly = balanced(m, stretch=1 + 0.98 * m2_wakes)
    for flat, awake1, awake2 in (
        (quiet, False, False),
        (nearly, False, False),
        (shifted, True, False),
        (scaled, False, True),
    ):
        made = Permutations(flat.shape[1], 0, 0, CPU)
        found = row_statistics(flat.view(1, 1, m, K))
        assert bool((found.log_p1 < 0).all()) is awake1
        assert bool((found.log_p2 < 0).all()) is awake2
        value, gradient = permutation_penalty(flat, K, made)
        assert bool(gradient.any()) is (awake1 or awake2)
        if not (awake1 or awake2):
            assert value.item() == pytest.approx(2 * math.log(2))
            continue
        h = 1e-5
        move = randn(1, m * K, seed=8) + 0.3 * flat + 0.2
        up, down = (permutation_penalty(flat + s * h * move, K, made)[0] for s in (1, -1))
        slope = ((up - down) / (2 * h)).item()
        assert (gradient * move).sum().item() == pytest.approx(slope, rel=1e-5)
    assert bool((permutation_penalty(shifted, K, made)[1].view(m, K).diff(dim=0) == 0).all())


def test_shrunk_noise_can_never_wake_the_second_moment() -> None:
    """By the formula sqrt(1 + M2) - 1 is at most 0.41: a bound on a small second moment too."""
    found = row_statistics(balanced(4096, shrink=0.25).view(1, 1, 4096, K))
    assert found.value.item() == pytest.approx(0.25 - 1)
    assert found.log_p2.item() < -10


@pytest.mark.parametrize("m", [256, 2048])
def test_p1_and_p2_bound_the_chance_of_their_deviation_on_gaussian_draws(m: int) -> None:
    """The fraction of draws with p <= t is at most t, within 3.5 standard errors."""
    draws = 20_000 if m == 256 else 4_000
    g = generator(20)
    logs = []
    for _ in range(draws // 1000):
        found = row_statistics(torch.randn(1000, 1, m, K, generator=g))
        logs.append(torch.stack([found.log_p1, found.log_p2]).flatten(1))
    p = torch.cat(logs, 1).exp()
    for t in (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001):
        allowed = t + 3.5 * math.sqrt(t * (1 - t) / draws)
        share = (p <= t).double().mean(1)
        assert share[0] <= allowed and share[1] <= allowed, (t, share)
    assert float((p[0] < 1).double().mean()) > 0.1, "the test would pass on bounds that never act"


def planted(kind: str, n: int, seed: int) -> Tensor:
    z = torch.randn(n, generator=generator(1000 + seed))
    if kind == "shift":
        return z + 0.1
    if kind == "larger":
        return z * 1.15
    if kind == "smaller":
        return z * 0.87
    if kind == "inside rows":
        rows = z.view(-1, K)
        rows[:, 1] = 0.6 * rows[:, 0] + 0.8 * rows[:, 1]
        return z
    if kind == "far apart":
        return z[: n // 64].repeat(64)
    assert kind == "gaussian"
    return z


def quantiles(kind: str, n: int = 8192, images: int = 12) -> Tensor:
    z = torch.stack([planted(kind, n, seed) for seed in range(images)])
    return Typicality()(z.view(images, 1, n).movedim(0, 1)).quantile


@pytest.mark.parametrize("kind", ["shift", "larger", "smaller", "inside rows"])
def test_planted_deviations_are_found_in_every_draw(kind: str) -> None:
    assert float(quantiles(kind).max()) <= 0.01


def test_numbers_repeated_far_apart_are_found_in_most_draws() -> None:
    assert int((quantiles("far apart") <= 0.01).sum()) >= 8


def test_gaussian_noise_is_not_accused() -> None:
    assert int((quantiles("gaussian", images=100) <= 0.01).sum()) <= 5


def spikes(m: int) -> Tensor:
    """One number in 64 is +-8, the rest 0, laid out so that its own rows look perfect."""
    rows = torch.zeros(m, K)
    for column in range(K):
        places = torch.arange(16 * column, m, 64)
        rows[places, column] = 8.0 * torch.tensor([1.0, -1.0]).repeat(len(places) // 2)
    return rows.flatten()[None]


def test_a_deviation_that_only_permutations_show_is_found() -> None:
    flat = spikes(8192)
    assert float(row_statistics(flat.view(1, 1, -1, K)).log_p2) == 0.0
    assert float(row_statistics(flat.view(1, 1, -1, K)).log_p1) == 0.0
    assert float(lowest_log_p(flat, K, Permutations(flat.shape[1], 100, 1, CPU))) < -4.6
    assert float(Typicality()(flat[None]).quantile) <= 0.01
    assert bool(permutation_penalty(flat, K, Permutations(flat.shape[1], 100, 1, CPU))[1].any())


def test_p_of_z_of_gaussian_noise_has_the_measured_median_and_first_percentile() -> None:
    """method.md section 3: n = 20,480, k = 4, b = 100: median 0.39 and 1st percentile 0.11."""
    g = generator(5)
    made = Permutations(20_480, 100, 6, CPU, keep=True)
    p = torch.cat(
        [lowest_log_p(torch.randn(10, 20_480, generator=g), K, made) for _ in range(12)]
    ).exp()
    assert float(p.median()) == pytest.approx(0.385, abs=0.05)
    null = null_distribution(20_480, K, 100).exp()
    assert float(null.median()) == pytest.approx(0.385, abs=0.03)
    assert float(null.quantile(0.01)) == pytest.approx(0.11, abs=0.035)


def largest_gap(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    at = torch.cat([a, b]).sort().values
    return float(
        (
            torch.searchsorted(a.sort().values, at, right=True) / len(a)
            - torch.searchsorted(b.sort().values, at, right=True) / len(b)
        )
        .abs()
        .max()
    )


def test_the_null_at_8192_numbers_agrees_with_the_null_at_32768() -> None:
    """Within the sampling error of two samples (alpha = 0.001)."""
    small = null_distribution(1_000_000, K, 100)
    assert small is null_distribution(8_192, K, 100), "simulated once for all larger n"
    g = generator(9)
    made = Permutations(32_768, 100, 3, CPU, keep=True)
    large = torch.cat(
        [lowest_log_p(torch.randn(8, 32_768, generator=g), K, made) for _ in range(12)]
    )
    limit = 1.95 * math.sqrt(1 / len(small) + 1 / len(large))
    assert largest_gap(small, large) < limit


def test_percentiles_of_fresh_gaussian_noise_are_uniform() -> None:
    z = torch.randn(2, 200, 1, 64, 64, generator=generator(77))
    found = Typicality()(z).quantile
    uniform = (torch.arange(500) + 0.5) / 500
    assert largest_gap(found, uniform) < 1.95 * math.sqrt(1 / 200 + 1 / 500)


def test_the_measure_repeats_itself_and_leaves_the_noise_alone() -> None:
    z = torch.randn(2, 3, 1, 32, 32, generator=generator(1))
    before = z.clone()
    one = Typicality()
    first, again, fresh = one(z), one(z), Typicality()(z)
    for other in (again, fresh):
        assert torch.equal(first.log_p, other.log_p)
        assert torch.equal(first.quantile, other.quantile)
    assert torch.equal(z, before) and first.log_p.shape == (3,)
    assert one(torch.randn(1, 1, 1, 8, 8)).log_p.shape == (1,), "another n in between"
    assert torch.equal(one(z).log_p, first.log_p)


@pytest.mark.parametrize("keep", [False, True])
def test_chunking_does_not_change_results(monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    flat = torch.randn(2, 1003, generator=generator(2)) * 1.1
    results = []
    for numbers in (32_000_000, 7 * 2006, 1):
        monkeypatch.setattr(permutations, "CPU_CHUNK_NUMBERS", numbers)
        made = Permutations(1003, 25, 4, CPU, keep=keep)
        for _ in range(2):
            results.append((lowest_log_p(flat, K, made), *permutation_penalty(flat, K, made)))
    for log_p, value, gradient in results[1:]:
        assert torch.equal(log_p, results[0][0])
        assert torch.allclose(value, results[0][1], rtol=1e-6)
        assert torch.allclose(gradient, results[0][2], rtol=1e-4, atol=1e-8)


def test_sets_too_large_to_keep_are_drawn_again_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Permutations(100, 6, 4, CPU, keep=True)
    kept = torch.cat(list(made.chunks(4)))
    assert torch.equal(torch.cat(list(made.chunks(5))), kept)
    monkeypatch.setattr(permutations, "KEPT_NUMBERS", 10)
    drawn = Permutations(100, 6, 4, CPU, keep=True)
    for size in (6, 1):
        assert torch.equal(torch.cat(list(drawn.chunks(size))), kept)
    g = generator(4)
    orders = torch.stack([torch.randperm(100, generator=g) for _ in range(6)])
    assert torch.equal(orders, kept.long())
    assert bool((kept.sort(1).values == torch.arange(100)).all())


def test_the_null_is_simulated_also_where_gradients_are_switched_off_for_good() -> None:
    with torch.inference_mode():
        null = null_distribution(64, K, 3, draws=50)
    assert not null.is_inference() and null.shape == (50,)
    assert torch.equal(null, null.sort().values)


def test_off_is_a_penalty_of_zero() -> None:
    z = randn(2, 3, 1, 2, 2)
    value, gradient = NoRegularizer().penalty(z, 0)
    assert value.shape == (3,) and not value.any()
    assert gradient.shape == z.shape and not gradient.any()
