"""Gradients from values alone, on maps whose gradient is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from core_models import FakeReward, randn, red, small_noise, small_problem, wave
from torch import Tensor

from comfyui_dno.dno_core import (
    Auto,
    Backpropagation,
    FunctionDecoder,
    Hybrid1,
    Hybrid2,
    NonFinite,
    NoRegularizer,
    Path,
    Problem,
    SamplerMap,
    Settings,
    Term,
    Typicality,
    ZoSgd,
    optimize,
)

N, C, SIDE, PIXELS = 2, 2, 3, 27
NUMBERS = N * C * SIDE * SIDE


@dataclass(frozen=True)
class LinearMap:
    """M(z) = A z, image by image; notes how wide it was asked, and may lack memory for much."""

    matrix: Tensor
    most: int = 1000
    widths: list[int] = field(default_factory=list)
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, z: Tensor) -> Path:
        self.widths.append(z.shape[1])
        if z.shape[1] > self.most:
            raise self.error()
        return Path((), self.matrix_times(z))

    def matrix_times(self, z: Tensor) -> Tensor:
        return z.movedim(1, 0).flatten(1) @ self.matrix.T

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        back = (v.to(self.matrix) @ self.matrix).view(z.shape[1], z.shape[0], *z.shape[2:])
        return back.movedim(0, 1)


def picture(x: Tensor) -> Tensor:
    return 0.5 + 0.02 * x.view(len(x), 3, 3, 3)


SLOPE = randn(PIXELS, seed=21)


def sloping(images: Tensor) -> Tensor:
    """A reward that is linear in the image."""
    return images.flatten(1) @ SLOPE.to(images)


def linear_problem(reward: Callable[[Tensor], Tensor] = sloping, **changes: Any) -> Problem:
    """A = random, so correlated pixels: what a probe moves is not white."""
    matrix = randn(PIXELS, NUMBERS, seed=22) / math.sqrt(NUMBERS)
    return Problem(
        LinearMap(matrix, **changes),
        FunctionDecoder(lambda x: picture(x)),
        (Term(FakeReward(reward, differentiable=False), weight=1.5),),
    )


def linear_noise(batch: int = 2, seed: int = 0) -> Tensor:
    return randn(N, batch, C, SIDE, SIDE, seed=seed)


def true_gradient(problem: Problem, z: Tensor) -> Tensor:
    known = tuple(
        replace(term, reward=replace(term.reward, differentiable=True)) for term in problem.terms
    )
    known_problem = replace(problem, terms=known)
    weights = tuple(term.weight for term in known)
    evaluation = known_problem.evaluate(z, weights, differentiate=True)
    return Backpropagation()(known_problem, z, evaluation, 0)


def estimate(estimator: Any, problem: Problem, z: Tensor, key: int = 1) -> Tensor:
    weights = tuple(0.0 if term.watch else term.weight for term in problem.terms)
    evaluation = problem.evaluate(z, weights, estimator.differentiates(problem.terms))
    return estimator(problem, z, evaluation, key)


def estimates(estimator: Any, problem: Problem, z: Tensor, count: int) -> Tensor:
    return torch.stack([estimate(estimator, problem, z, key) for key in range(count)])


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    a, b = found.movedim(1, 0).flatten(1), expected.movedim(1, 0).flatten(1)
    return torch.nn.functional.cosine_similarity(a, b)


def largest_deviation(found: Tensor, expected: Tensor) -> float:
    """Of the mean of estimates [K,...], in standard errors, over all numbers."""
    error = found.std(0) / math.sqrt(len(found))
    return float(((found.mean(0) - expected).abs() / error).max())


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("antithetic", [False, True])
def test_zo_sgd_is_unbiased_on_a_linear_map(gaussian: bool, antithetic: bool) -> None:
    """Also with a large scale, where leaving out the correction for the rescaling would show."""
    problem, z = linear_problem(), linear_noise(1)
    estimator = ZoSgd(probes=40, scale=0.7, antithetic=antithetic, gaussian=gaussian)
    found, expected = estimates(estimator, problem, z, 400), true_gradient(problem, z)
    assert largest_deviation(found, expected) < 4.5
    along = (found * expected).flatten(1).sum(1) / expected.square().sum()
    error = float(along.std() / math.sqrt(len(along)))
    assert abs(float(along.mean()) - 1) < 4 * error
    assert error < 0.02, "precise enough to see the factor of sqrt(1 + 0.49)"


def test_antithetic_pairs_lower_the_variance_where_the_objective_is_curved() -> None:
    """Per direction always; here, at a scale where it is bent, also at equal cost."""
    bend = 2000.0

    def curved(images: Tensor) -> Tensor:
        return sloping(images) + bend * (images - 0.5).square().sum((1, 2, 3))

    problem, z = linear_problem(curved), linear_noise(1)

    def spread(probes: int, antithetic: bool) -> float:
        estimator = ZoSgd(probes, 1.0, antithetic, gaussian=False)
        return float(estimates(estimator, problem, z, 300).var(0).sum())

    one_sided = spread(8, antithetic=False)
    assert spread(16, antithetic=True) < 0.5 * one_sided
    assert spread(8, antithetic=True) < 0.8 * one_sided


def test_more_probes_lower_the_variance_of_zo_sgd_in_proportion() -> None:
    problem, z = linear_problem(), linear_noise(1)
    few, many = (float(estimates(ZoSgd(q, 0.1), problem, z, 300).var(0).sum()) for q in (4, 16))
    assert few / many == pytest.approx(4, rel=0.25)


def mean_cosine(estimator: Any, problem: Problem, z: Tensor, count: int = 40) -> float:
    expected = true_gradient(problem, z)
    found = estimates(estimator, problem, z, count)
    return float(torch.stack([cosines(each, expected) for each in found]).mean())


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("combination", ["sum", "least squares"])
def test_hybrid_2_points_up_and_ever_straighter_with_more_probes(
    combination: Any, antithetic: bool
) -> None:
    problem, z = linear_problem(), linear_noise(1)
    means = [
        mean_cosine(Hybrid2(probes, 0.01, antithetic, combination=combination), problem, z)
        for probes in (2, 8, 32, 128)
    ]
    assert 0.1 < means[0] and means == sorted(means)
    assert means[-1] > 0.8


def test_the_sum_tends_to_a_direction_of_its_own_and_least_squares_to_the_gradient() -> None:
    """J^T (J J^T) a for the sum, a the reward's slope: what moves most counts most."""
    problem, z = linear_problem(), linear_noise(1)
    expected = true_gradient(problem, z)
    jacobian = problem.noise_map.matrix  # type: ignore[attr-defined]
    straight = jacobian.T @ SLOPE
    limit = jacobian.T @ (jacobian @ straight)
    highest = float(torch.nn.functional.cosine_similarity(straight, limit, dim=0))
    assert 0.8 < highest < 0.97
    many = {
        combination: float(
            cosines(
                estimate(
                    Hybrid2(4000, 0.01, combination=combination, probe_batch=4000), problem, z
                ),
                expected,
            )
        )
        for combination in ("sum", "least squares")
    }
    assert many["sum"] == pytest.approx(highest, abs=0.02)
    assert many["least squares"] > 0.995


@pytest.mark.parametrize("combination", ["sum", "least squares"])
def test_the_two_scalings_differ_in_length_alone(combination: Any) -> None:
    problem, z = linear_problem(), linear_noise()
    fit, unit = (
        estimate(Hybrid2(6, combination=combination, scaling=scaling), problem, z)
        for scaling in ("fit", "unit")
    )
    torch.testing.assert_close(cosines(fit, unit), torch.ones(2, dtype=torch.float64))
    assert not torch.allclose(fit, unit)


def test_hybrid_2_fitted_has_the_objective_s_own_units() -> None:
    """The fit explains the probes' gains; unit norm knows nothing of weight or scale."""
    z = linear_noise(1)
    for weight in (1.0, 40.0):
        problem = linear_problem()
        problem = replace(problem, terms=(replace(problem.terms[0], weight=weight),))
        expected = true_gradient(problem, z)
        found = estimate(Hybrid2(200, 0.01), problem, z)
        length = (found * expected).sum() / expected.square().sum()
        assert 0.5 < float(length) < 1.5
        evaluation = problem.evaluate(z, (weight,))
        unit = Hybrid2(8, 0.01, scaling="unit").image_gradient(problem, z, evaluation, 1)
        assert float(unit.norm()) == pytest.approx(1)


@pytest.mark.parametrize("gaussian", [False, True])
def test_hybrid_2_gives_back_a_gradient_that_lies_along_its_single_probe(gaussian: bool) -> None:
    """With one direction u the best fit is the gradient's own part along u."""
    problem, z = linear_problem(), linear_noise(2)
    evaluation = problem.evaluate(z, (1.5,))
    slope = Hybrid2(1, 0.3, gaussian=gaussian).image_gradient(problem, z, evaluation, 3)
    assert slope is not None
    flat, true = slope.flatten(1), 1.5 * SLOPE
    for each in flat:
        unit = each.double() / each.double().norm()
        assert float(each.double() @ unit) == pytest.approx(float(true @ unit), rel=1e-4)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_hybrid_1_is_unbiased_on_a_linear_reward(antithetic: bool, offset: float) -> None:
    """With offset 0.5 half of the pixels are burnt out: the clamp halves what they show."""
    problem, z = linear_problem(), linear_noise(1)
    problem = replace(problem, decoder=FunctionDecoder(lambda x: picture(10 * x) + offset))
    evaluation = problem.evaluate(z, (1.5,))
    assert (float(evaluation.saturated) > 0.3) == (offset > 0)
    boxed: list[Tensor] = []

    class Catching(LinearMap):
        def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
            boxed.append(v)
            return super().pull(z, path, v)

    watching = replace(problem, noise_map=Catching(problem.noise_map.matrix))  # type: ignore[attr-defined]
    estimator = Hybrid1(probes=20, scale=0.2, antithetic=antithetic)
    found = estimates(estimator, watching, z, 600)
    assert largest_deviation(found, true_gradient(problem, z)) < 4.5
    slopes = torch.stack(boxed).flatten(1) / 0.2  # the decoder's own factor
    along = slopes @ SLOPE.to(slopes) / (1.5 * SLOPE.square().sum())
    assert abs(float(along.mean()) - 1) < 4 * float(along.std()) / math.sqrt(len(along))


@pytest.mark.parametrize("estimator", [ZoSgd(6, 0.05), Hybrid1(6), Hybrid2(6, 0.05), Auto()])
def test_the_same_key_gives_the_same_bits_and_another_key_does_not(estimator: Any) -> None:
    problem, z = linear_problem(), linear_noise()
    state = torch.get_rng_state()
    assert torch.equal(estimate(estimator, problem, z), estimate(estimator, problem, z))
    assert not torch.equal(estimate(estimator, problem, z), estimate(estimator, problem, z, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("estimator", [ZoSgd(6, 0.05), Hybrid1(6), Hybrid2(6, 0.05)])
def test_an_image_gets_the_same_probes_alone_and_in_a_batch_and_others_than_its_neighbour(
    estimator: Any,
) -> None:
    problem, z = linear_problem(), linear_noise(1).expand(-1, 3, -1, -1, -1).contiguous()
    together, alone = estimate(estimator, problem, z), estimate(estimator, problem, z[:, :1])
    torch.testing.assert_close(together[:, :1], alone)
    assert not torch.allclose(together[:, 0], together[:, 1])
    assert not torch.allclose(together[:, 1], together[:, 2])


@pytest.mark.parametrize("estimator", [ZoSgd, Hybrid2])
@pytest.mark.parametrize("antithetic", [False, True])
def test_probes_side_by_side_give_what_probes_one_by_one_give(
    estimator: Any, antithetic: bool
) -> None:
    z = linear_noise(3)
    found = []
    for batch in (1, 4, 100):
        problem = linear_problem()
        made = estimator(7, 0.1, antithetic, probe_batch=batch)
        found.append(estimate(made, problem, z))
        widths = problem.noise_map.widths[1:]  # type: ignore[attr-defined]
        assert max(widths) == 3 * min(batch, made.evaluations)
        assert sum(widths) == 3 * made.evaluations
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
        MemoryError,
    ],
)
def test_without_memory_for_so_many_probes_fewer_are_run_side_by_side(error: Any) -> None:
    z = linear_noise(2)
    roomy, tight = linear_problem(), linear_problem(most=5, error=error)
    estimator = Hybrid2(11, 0.1, antithetic=False, probe_batch=90)
    torch.testing.assert_close(estimate(estimator, tight, z), estimate(estimator, roomy, z))
    assert tight.noise_map.widths == [2, 22, 12, 6, 4, 4, 4, 4, 4, 2]  # type: ignore[attr-defined]


def test_without_memory_for_a_single_probe_the_error_goes_through() -> None:
    problem, z = linear_problem(most=3), linear_noise(2)
    with pytest.raises(torch.OutOfMemoryError):
        estimate(ZoSgd(4), problem, linear_noise(4))
    assert estimate(ZoSgd(4, probe_batch=2), problem, z).shape == z.shape


def test_an_error_that_is_not_of_memory_is_not_tried_again() -> None:
    problem = linear_problem(most=3, error=lambda: RuntimeError("a broken node"))
    with pytest.raises(RuntimeError, match="a broken node"):
        estimate(ZoSgd(4, probe_batch=4), problem, linear_noise(2))
    assert problem.noise_map.widths == [2, 8]  # type: ignore[attr-defined]


def test_auto_is_backpropagation_for_rewards_with_a_gradient() -> None:
    problem, z = small_problem(), small_noise()
    assert torch.equal(estimate(Auto(), problem, z), estimate(Backpropagation(), problem, z))
    assert Auto().exact(problem.terms) and Auto().runs(problem.terms) == 0


def test_auto_adds_both_kinds_of_gradient_in_one_sweep() -> None:
    smooth = Term(FakeReward(wave), weight=0.3)
    hidden = Term(FakeReward(red, differentiable=False, scale=0.1), weight=2.0)
    problem, z = small_problem(terms=(smooth, hidden)), small_noise()
    pulls = []

    class Counting(SamplerMap):
        def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
            pulls.append(1)
            return super().pull(z, path, v)

    inner = problem.noise_map
    assert isinstance(inner, SamplerMap)
    problem = replace(problem, noise_map=Counting(inner.denoise, inner.steps, inner.start))
    auto = Auto(Hybrid2(4, 0.01))
    assert not auto.exact(problem.terms) and auto.runs(problem.terms) == 4
    together = estimate(auto, problem, z)
    assert len(pulls) == 1
    first = estimate(Backpropagation(), small_problem(terms=(smooth,)), z)
    second = estimate(Hybrid2(4, 0.01), small_problem(terms=(hidden,)), z)
    torch.testing.assert_close(together, first + second, rtol=1e-4, atol=1e-7)


def test_a_unit_norm_cannot_be_part_of_a_sum() -> None:
    with pytest.raises(ValueError, match="Use 'fit'"):
        Auto(Hybrid2(scaling="unit"))


def test_only_the_climbed_terms_are_asked_about_probes() -> None:
    asked: list[str] = []

    def noting(name: str) -> Callable[[Tensor], Tensor]:
        def score(images: Tensor) -> Tensor:
            asked.append(name)
            return red(images)

        return score

    def term(name: str, **changes: Any) -> Term:
        return Term(FakeReward(noting(name), name, differentiable=False), **changes)

    terms = (term("climbed"), term("watched", watch=True), term("weightless", weight=0.0))
    z = small_noise()
    estimate(ZoSgd(4), small_problem(terms=terms), z)
    assert asked.count("climbed") == 5
    assert asked.count("watched") == asked.count("weightless") == 1
    asked.clear()
    estimate(Auto(Hybrid2(4)), small_problem(terms=(*terms, Term(FakeReward(noting("smooth"))))), z)
    assert asked.count("climbed") == 5 and asked.count("smooth") == 1


def test_the_weights_of_the_moment_count_and_not_those_of_the_start() -> None:
    terms = tuple(
        Term(FakeReward(r, differentiable=False), weight=w) for r, w in ((red, 1.0), (wave, 0.0))
    )
    problem, z = small_problem(terms=terms), small_noise()
    evaluation = problem.evaluate(z, (0.0, 1.0))
    found = Hybrid2(4)(problem, z, evaluation, 5)
    alone = small_problem(terms=(Term(FakeReward(wave, differentiable=False)),))
    assert torch.equal(found, estimate(Hybrid2(4), alone, z, 5))
    nothing = problem.evaluate(z, (0.0, 0.0))
    for estimator in (ZoSgd(4), Hybrid1(4), Hybrid2(4), Auto()):
        assert not estimator(problem, z, nothing, 5).any()


@pytest.mark.parametrize("goal", ["maximize", "minimize", "target"])
def test_goal_and_scale_count_for_a_black_box_too(goal: Any) -> None:
    term = Term(FakeReward(red, scale=0.05, differentiable=False), 2.0, goal, target=0.45)
    problem, z = small_problem(terms=(term,), dtype=torch.float64), small_noise(dtype=torch.float64)
    expected = true_gradient(problem, z)
    assert bool(
        (cosines(estimate(ZoSgd(2000, 1e-3, probe_batch=50), problem, z), expected) > 0.9).all()
    )
    assert bool((cosines(estimate(Hybrid2(64, 1e-3), problem, z), expected) > 0.6).all())


def test_a_reward_that_answers_the_same_everywhere_gives_zero_and_no_nan() -> None:
    flat = linear_problem(lambda images: images.new_ones(len(images)))
    for estimator in (ZoSgd(4), Hybrid1(4), Hybrid2(4), Hybrid2(4, scaling="unit")):
        assert not estimate(estimator, flat, linear_noise()).any()


def test_zo_sgd_never_asks_for_a_gradient() -> None:
    """With a map, a decoder and a reward that raise where gradients are recorded."""

    def guarded(x: Tensor, *rest: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.tanh(x)

    def scored(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not images.requires_grad
        return images.flatten(1).mean(1)

    problem = small_problem(denoise=guarded, terms=(Term(FakeReward(scored)),))
    problem = replace(
        problem, decoder=FunctionDecoder(lambda x: guarded(x[:, :1]).expand(-1, 3, -1, -1))
    )
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = [
            iteration.objective
            for iteration, _ in zip(
                optimize(
                    problem,
                    small_noise(),
                    lambda index: Settings(0.05, 0.0, (1.0,)),
                    seed=1,
                    estimator=ZoSgd(8, 0.05),
                    regularizer=NoRegularizer(),
                    typicality=Typicality(permutations=2),
                ),
                range(12),
                strict=False,
            )
        ]
    assert not saved
    assert bool((found[-1] > found[0]).all())
    with pytest.raises(AssertionError):
        estimate(Backpropagation(), problem, small_noise())


@pytest.mark.parametrize("estimator", [Auto(), Hybrid2(8, 0.02), ZoSgd(16, 0.05)])
def test_a_black_box_climbs(estimator: Any) -> None:
    hidden = Term(FakeReward(lambda x: (red(x) * 255).round(), scale=10.0, differentiable=False))
    problem = small_problem(terms=(hidden,))
    run = optimize(
        problem,
        small_noise(),
        lambda index: Settings(0.05, 0.0, (1.0,)),
        seed=3,
        estimator=estimator,
        regularizer=NoRegularizer(),
        typicality=Typicality(permutations=2),
    )
    found = [iteration.objective for iteration, _ in zip(run, range(25), strict=False)]
    assert bool((found[-1] > found[0] + 0.5).all())


def test_a_probe_that_is_not_a_number_is_named() -> None:
    problem = linear_problem()
    calls = iter(range(100))
    broken = FunctionDecoder(lambda x: picture(x) * (1.0 if next(calls) == 0 else math.nan))
    with pytest.raises(NonFinite, match="image of a probe"):
        estimate(ZoSgd(2), replace(problem, decoder=broken), linear_noise())


@pytest.mark.parametrize("kind", [ZoSgd, Hybrid1, Hybrid2])
def test_bad_settings_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        kind(probes=0)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="Set it above 0"):
            kind(scale=scale)
    with pytest.raises(ValueError, match="'half' is unknown"):
        Hybrid2(scaling="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mean' is unknown"):
        Hybrid2(combination="mean")  # type: ignore[arg-type]


def test_an_odd_number_of_antithetic_probes_is_rounded_up() -> None:
    pairs, single = Hybrid2(5, antithetic=True), Hybrid2(5, antithetic=False)
    assert (pairs.count, pairs.evaluations) == (3, 6)
    assert (single.count, single.evaluations) == (5, 5)


def test_inputs_are_left_alone() -> None:
    problem, z = linear_problem(), linear_noise()
    before = z.clone()
    evaluation = problem.evaluate(z, (1.5,))
    image = evaluation.image.clone()
    for estimator in (ZoSgd(4), Hybrid1(4), Hybrid2(4), Auto()):
        estimator(problem, z, evaluation, 1)
    assert torch.equal(z, before) and torch.equal(evaluation.image, image)
