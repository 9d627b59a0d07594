"""What the experiment on gradient modes counts, keeps and reads off its curves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_dno.benchmarks.experiments import gains
from comfyui_dno.benchmarks.experiments.cases import Case
from comfyui_dno.benchmarks.experiments.curves import Curve

ROOT = Path(__file__).resolve().parents[2]


def curve(objective: list[float], looks: bool = False, quantile: float = 0.5) -> Curve:
    count = len(objective)
    return Curve(
        "cat",
        0,
        cost=[10.0 * i for i in range(count)],
        seconds=[1.0 * i for i in range(count)],
        objective=objective,
        judge=[-x for x in objective],
        distance=[1.0] * count,
        quantile=[quantile] * count,
        step_low=[0.5] * count,
        saturated=[0.0] * count,
        iteration=[5 * i for i in range(count)] if looks else [],
        loop=list(objective) if looks else [],
    )


def test_a_gain_is_reached_where_the_mean_of_what_would_be_returned_is_there() -> None:
    found = gains.reach([curve([0.0, 1.0, 0.5, 2.0]), curve([1.0, 1.0, 3.0, 1.0])], 1.5)
    assert found is not None
    assert found.iteration == 2, "the first picture keeps its 1.0 although its row 2 is lower"
    assert found.gain == pytest.approx((1.0 + 2.0) / 2)
    assert found.judge == pytest.approx(-(1.0 + 2.0) / 2), "the judge of the row that is returned"
    assert (found.cost, found.seconds) == (20.0, 2.0)
    assert gains.reach([curve([0.0, 1.0])], 1.01) is None


def test_looks_at_a_loop_on_fewer_steps_are_not_chosen_among() -> None:
    """To return the best of several redraws they would all have to be paid."""
    run = curve([0.0, 3.0, 1.0], looks=True)
    assert run.returned == 2
    found = gains.moment([run], 2)
    assert (found.gain, found.iteration) == (1.0, 10)
    assert gains.moment([run], 1).gain == 3.0


def test_untypical_noise_is_not_returned() -> None:
    assert gains.moment([curve([0.0, 3.0], quantile=0.0)], 1).gain == 0.0


@pytest.fixture(scope="module")
def lab(comfy: Any) -> Any:
    from comfyui_dno.benchmarks.experiments.setting import Lab

    return Lab()


CASES = [Case("cat face", 3), Case("pizza", 4)]


def at_bench(lab: Any, work: Any, steps: int) -> Any:
    from comfyui_dno.benchmarks.experiments.setting import climbed

    return lab.at_bench(CASES, climbed("darkness", CASES), work, steps=steps)


@pytest.mark.parametrize(
    ("mode", "backwards"),
    [
        ({"name": "exact"}, 4),
        ({"name": "spread k", "k": 2}, 2),
        ({"name": "last k", "k": 3}, 3),
        ({"name": "linear"}, 0),
    ],
)
def test_a_cheap_gradient_is_charged_for_the_steps_that_it_differentiates(
    lab: Any, mode: dict[str, Any], backwards: int
) -> None:
    from comfyui_dno.benchmarks.experiments import counting
    from comfyui_dno.benchmarks.experiments.cheap import cheap

    def work(bench: Any) -> list[float]:
        run = cheap(bench, 0.03, 1, regularizer={"class": "NoRegularizer"}, mode=mode)
        return [bench.costs.spent for _ in run]

    first, second = at_bench(lab, work, steps=4)
    assert first == pytest.approx(4 * counting.FORWARD + counting.DECODE)
    back = backwards * counting.BACKWARD + counting.DECODE_BACKWARD
    assert second == pytest.approx(2 * first + back)


def test_a_loop_on_fewer_steps_shows_and_pays_the_drawing_in_all_of_them(lab: Any) -> None:
    from comfyui_dno.benchmarks.experiments import counting
    from comfyui_dno.benchmarks.experiments.cheap import cheap, loop_of
    from comfyui_dno.dno_core import Problem

    options = {
        "regularizer": {"class": "NoRegularizer"},
        "mode": {"name": "exact"},
        "optimize_steps": 2,
    }

    def work(bench: Any) -> Any:
        bare = Problem(bench.noise_map, bench.decoder, bench.problem.terms)
        noises = [iteration.z for iteration in islice(loop_of(bench, 0.03, 2, options), 3)]
        drawn = [bare.evaluate(z, (1.0,)) for z in noises]
        bench.costs.spent = 0.0
        return drawn, list(cheap(bench, 0.03, 2, **options))

    drawn, shown = at_bench(lab, work, steps=5)
    assert [each.iteration for each in shown] == [0, 2]
    assert torch.equal(shown[0].image, drawn[0].image)
    assert shown[1].loop is not None and bool((shown[1].loop > shown[0].loop).all())
    assert torch.equal(shown[1].objective, torch.maximum(drawn[0].objective, drawn[2].objective))
    forward = 2 * counting.FORWARD + counting.DECODE
    backward = 2 * counting.BACKWARD + counting.DECODE_BACKWARD
    redraws = 2 * (5 * counting.FORWARD + counting.DECODE)
    assert shown[0].cost == pytest.approx(forward + redraws)
    assert shown[1].cost == pytest.approx(3 * forward + 2 * backward + redraws)


def test_the_better_of_the_winner_and_the_first_picture_is_shown_image_by_image() -> None:
    from comfyui_dno.benchmarks.experiments.cheap import better_of
    from comfyui_dno.benchmarks.experiments.curves import Snapshot

    def shown(objective: list[float], value: float, cost: float) -> Snapshot:
        full = torch.full((2,), value)
        image = torch.full((2, 3, 4, 4), value)
        return Snapshot(image, torch.tensor(objective), full, full, full, iteration=7, cost=cost)

    found = better_of(shown([2.0, 0.0], 0.9, 50.0), shown([1.0, 1.0], 0.1, 5.0))
    assert found.objective.tolist() == [2.0, 1.0]
    assert found.image[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.1])
    assert found.quantile is not None and found.quantile.tolist() == pytest.approx([0.9, 0.1])
    assert (found.cost, found.iteration) == (50.0, 7)


def test_a_run_that_finishes_on_all_steps_shows_those_and_the_first_picture(lab: Any) -> None:
    from comfyui_dno.benchmarks.experiments import counting
    from comfyui_dno.benchmarks.experiments.cheap import cheap, loop_of
    from comfyui_dno.dno_core import Problem

    options = {
        "regularizer": {"class": "NoRegularizer"},
        "mode": {"name": "spread k", "k": 2},
        "optimize_steps": 2,
        "finish_iterations": 1,
    }

    def work(bench: Any) -> Any:
        bare = Problem(bench.noise_map, bench.decoder, bench.problem.terms)
        few = [each.z for each in islice(loop_of(bench, 0.03, 3, options), 4)]
        plain = [bare.evaluate(z, (1.0,)).objective for z in few]
        bench.costs.spent = 0.0
        spent, shown = [], []
        for each in cheap(bench, 0.03, 3, **options):
            shown.append(each)
            spent.append(bench.costs.spent)
        return plain, shown, spent

    plain, shown, spent = at_bench(lab, work, steps=4)
    assert [each.iteration for each in shown] == [0, 2, 3]
    for each, objective in zip(shown, (plain[0], plain[2], plain[3]), strict=True):
        assert torch.equal(each.objective, objective)
    assert bool((shown[2].objective > shown[0].objective).all())
    draw, back = counting.DECODE, 2 * counting.BACKWARD + counting.DECODE_BACKWARD
    few, full = 2 * counting.FORWARD + draw, 4 * counting.FORWARD + draw
    assert spent[0] == pytest.approx(few + full)
    assert spent[1] == pytest.approx(2 * few + 2 * back + 2 * full)
    assert spent[2] == pytest.approx(2 * few + 3 * back + 3 * full)


def test_a_price_knows_where_a_run_goes_on_otherwise() -> None:
    from comfyui_dno.benchmarks.experiments.timing import Price

    assert Price(1.0, 2.0, 10.0).until(3) == 1 + 3 * 2 + 10
    assert Price(1.0, 2.0, 10.0, later=5.0, before=3).until(5) == 1 + 3 * 2 + 10 + 2 * 5


def test_the_time_to_a_gain_is_measured_in_small(comfy: Any, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "benchmarks/time_to_gain.py", "--quick", "--output", str(file)],
        cwd=ROOT,
        env={**os.environ, "COMFYUI_PATH": str(comfy.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["speed_up"] >= 0 and "exact_50" in found["arms"]
