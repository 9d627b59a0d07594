"""The statistics of the experiments, on curves whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from comfyui_dno.benchmarks.experiments import compare
from comfyui_dno.benchmarks.experiments.curves import Curve


def curve(
    prompt: str, objective: list[float], judge: list[float] | None = None, seed: int = 0
) -> Curve:
    count = len(objective)
    judge = judge or [0.0] * count
    return Curve(
        prompt,
        seed,
        cost=[10.0 * (i + 1) for i in range(count)],
        seconds=[float(i) for i in range(count)],
        objective=objective,
        judge=judge,
        distance=[1.0] * count,
        quantile=[0.5] * count,
        step_low=[0.5] * count,
        saturated=[0.0] * count,
    )


def test_a_column_is_read_where_the_reward_first_reaches_the_level() -> None:
    climbing = curve("cat", [0.0, 2.0, 1.0, 4.0], [10.0, 20.0, 0.0, 30.0])
    assert compare.at_level(climbing, 0.0, "judge") == 10.0
    assert compare.at_level(climbing, 1.0, "judge") == pytest.approx(15.0), "not the later dip"
    assert compare.at_level(climbing, 3.0, "judge") == pytest.approx(20.0)
    assert compare.at_level(climbing, 3.0, "cost") == pytest.approx(30 + 10 * 2 / 3)
    assert math.isnan(compare.at_level(climbing, 4.1, "judge"))


def test_equal_reward_is_the_lower_of_the_two_best() -> None:
    """The judge falls with the reward in both arms; the slower arm must not look better for it."""
    fast = curve("cat", [0.0, 2.0, 4.0], [0.0, -2.0, -4.0])
    slow = curve("cat", [0.0, 0.5, 1.0], [0.0, -0.5, -1.0])
    assert compare.at_equal_reward("judge")(fast, slow) == pytest.approx(0.0)
    assert compare.on_the_way("judge")(fast, slow) == pytest.approx(0.0)
    assert compare.last("judge")(fast, slow) == -3.0
    cost = compare.at_equal_reward("cost")(fast, slow)
    assert cost == pytest.approx(15.0 - 30.0)


def test_reward_at_equal_cost_looks_no_further_than_the_cheaper_arm() -> None:
    long, short = curve("cat", [0.0, 1.0, 2.0, 9.0]), curve("cat", [0.0, 3.0])
    assert compare.reward_at_equal_cost(long, short) == 1.0 - 3.0


def test_untypical_iterations_are_not_returned() -> None:
    hacked = curve("cat", [0.0, 1.0, 5.0])
    hacked.quantile[:] = [0.0, 0.4, 0.01]
    assert hacked.returned == 1
    hacked.quantile[:] = [0.0, 0.0, 0.0]
    assert hacked.returned == 0, "the picture one had always counts"
    hacked.quantile[:] = [math.nan] * 3
    assert hacked.returned == 2, "a method without noise has nothing untypical"


def test_pairs_are_averaged_within_a_prompt_before_prompts_are_resampled() -> None:
    """Two prompts, one with three seeds: it must not weigh three times as much."""
    arm = [curve("cat", [1.0], seed=s) for s in range(3)] + [curve("dog", [0.0])]
    base = [curve("cat", [0.0], seed=s) for s in range(3)] + [curve("dog", [0.0])]
    found = compare.effect(compare.pairs(arm, base), compare.last("objective"))
    assert found.mean == pytest.approx(0.5)
    assert (found.prompts, found.pairs) == (2, 4)


def test_the_interval_is_that_of_the_normal_theory_for_many_prompts() -> None:
    draws = np.random.default_rng(5).normal(0.3, 1.0, 200)
    arm = [curve(str(i), [float(x)]) for i, x in enumerate(draws)]
    base = [curve(str(i), [0.0]) for i in range(200)]
    found = compare.effect(compare.pairs(arm, base), compare.last("objective"))
    error = draws.std(ddof=1) / math.sqrt(200)
    assert found.mean == pytest.approx(draws.mean())
    assert found.low == pytest.approx(draws.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(draws.mean() + 1.96 * error, abs=0.1 * error)
    assert found.detectable == pytest.approx(2.8 * error)
    again = compare.effect(compare.pairs(arm, base), compare.last("objective"))
    assert again == found, "a fixed seed"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """300 experiments of 24 prompts without any effect: about 5 % false alarms, a little more for
    the percentile interval of so few."""
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        values = generator.normal(0.0, 1.0, 24)
        arm = [curve(str(i), [float(x)]) for i, x in enumerate(values)]
        base = [curve(str(i), [0.0]) for i in range(24)]
        alarms += compare.effect(compare.pairs(arm, base), compare.last("objective")).sure
    assert 0.02 <= alarms / 300 <= 0.11


def test_a_missing_measure_leaves_its_pair_out() -> None:
    arm, base = [curve("cat", [1.0]), curve("dog", [3.0])], [curve("cat", [0.0])]
    found = compare.pairs(arm, base)
    assert [a.prompt for a, _ in found] == ["cat"]
    nothing = compare.effect(found, lambda a, b: math.nan)
    assert math.isnan(nothing.mean) and nothing.pairs == 0 and not nothing.sure
