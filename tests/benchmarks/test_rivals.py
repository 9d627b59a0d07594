"""Every rival of DNO keeps to DNO's budget, and begins where the stock sampler does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comfyui_dno.benchmarks.experiments import rivals
from comfyui_dno.benchmarks.experiments.cases import Case
from comfyui_dno.benchmarks.experiments.compare import SLACK
from comfyui_dno.benchmarks.experiments.counting import Costs

ITERATIONS = 3
NORM = {"class": "NormRegularizer", "gamma": 0.01}
OFF = {"class": "NoRegularizer"}
METHODS: dict[str, Callable[..., Any]] = {
    "best of N": partial(rivals.best_of_n, knob=1.0),
    "neighbours": partial(rivals.random_neighbours, distance=0.5),
    "universal guidance": partial(rivals.guidance, strength=3.0),
    "LGD": partial(rivals.guidance, strength=3.0, samples=2),
    "recurrence": partial(rivals.guidance, strength=3.0, recurrence=2),
    "screened": partial(rivals.screened, learning_rate=0.03, seeds=2, regularizer=OFF),
}
GUIDED = ("universal guidance", "LGD", "recurrence")


@pytest.fixture(scope="module")
def lab(comfy: Any) -> Any:
    from comfyui_dno.benchmarks.experiments.setting import Lab

    return Lab()


def at_work(lab: Any, work: Callable[[Any], Any], eta: float = 1.0) -> Any:
    from comfyui_dno.benchmarks.experiments.setting import climbed

    chosen = [Case("cat face", 3), Case("pizza", 4)]
    return lab.at_bench(chosen, climbed("darkness", chosen), work, steps=3, eta=eta)


@pytest.mark.parametrize("name", METHODS)
def test_a_rival_spends_the_budget_and_its_best_never_falls(lab: Any, name: str) -> None:
    def work(bench: Any) -> tuple[Any, ...]:
        plain = bench.problem.evaluate(bench.z, (1.0,)).image
        bench.costs.spent = 0.0
        found, bills = [], []
        for snapshot in METHODS[name](bench, iterations=ITERATIONS):
            found.append(snapshot)
            bills.append(bench.costs.spent)
        limit = rivals.budget(bench, ITERATIONS)
        return plain, found, bills, limit, rivals.iteration_price(bench)

    plain, found, bills, limit, iteration = at_work(lab, work)
    dearest = max(b - a for a, b in zip([0.0, *bills], bills, strict=False))
    assert bills[-1] <= limit * SLACK, "never more than DNO"
    assert limit - bills[-1] < max(dearest, iteration), "no look left that could be paid"
    if name not in GUIDED:
        assert torch.equal(found[0].image, plain), "it begins with the stock picture"
    if name != "screened":
        objectives = torch.stack([snapshot.objective for snapshot in found])
        assert (objectives.diff(dim=0) >= 0).all()
        last = found[-1]
        darkness = 1 - last.image.mean(dim=(1, 2, 3)) * 2
        torch.testing.assert_close(last.objective, darkness / 0.335)
    assert all((s.quantile is None) == (name in GUIDED) for s in found)


def test_guidance_is_charged_a_backward_a_step_and_a_decode_with_its_gradient_a_draw(
    lab: Any,
) -> None:
    from comfyui_dno.benchmarks.experiments import counting

    def work(bench: Any) -> float:
        next(rivals.guidance(bench, 1.0, 9, samples=2, recurrence=2))
        return bench.costs.spent

    decode = counting.DECODE + counting.DECODE_BACKWARD
    expected = 3 * 2 * (counting.BACKWARD + 2 * decode) + counting.DECODE
    assert at_work(lab, work) == pytest.approx(expected)


def test_without_strength_the_first_guided_picture_is_the_stock_one(lab: Any) -> None:
    def work(bench: Any) -> tuple[Any, Any]:
        plain = bench.problem.evaluate(bench.z, (1.0,)).image
        return next(rivals.guidance(bench, 0.0, 1)).image, plain

    guided, plain = at_work(lab, work)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)


def test_reno_moves_the_starting_noise_alone_and_is_not_filtered_by_p_z(lab: Any) -> None:
    def work(bench: Any) -> tuple[Any, Any]:
        return bench.z.shape[0], list(rivals.reno(bench, 2.0, 2, regularizer=NORM))

    noises, found = at_work(lab, work, eta=0.0)
    assert noises == 1 and len(found) == 3
    assert all(s.quantile is None and s.step_low is not None for s in found)
    assert (found[2].objective > found[0].objective).all()


def test_the_best_noise_is_chosen_image_by_image() -> None:
    noises = [torch.full((1, 3, 2), float(index)) for index in range(3)]
    scores = ([0.0, 5.0, 1.0], [1.0, 0.0, 1.0], [0.5, 4.0, 2.0])
    seen = [
        (z, SimpleNamespace(objective=torch.tensor(row)))
        for z, row in zip(noises, scores, strict=True)
    ]
    assert rivals.best_noise(seen)[0, :, 0].tolist() == [1.0, 0.0, 2.0]  # type: ignore[arg-type]


def test_what_is_left_pays_for_whole_iterations_and_never_for_less_than_none() -> None:
    bench: Any = SimpleNamespace(noise_map=SimpleNamespace(steps=[None] * 8), costs=Costs(1))
    for iterations in itertools.chain(range(5), (15,)):
        assert rivals.affordable(bench, rivals.budget(bench, iterations)) == iterations
        assert rivals.affordable(bench, rivals.budget(bench, iterations) - 0.1) == max(
            iterations - 1, 0
        )
