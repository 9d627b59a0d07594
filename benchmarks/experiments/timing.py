"""How long an arm takes to a gain: its iterations from the climbs, their seconds measured anew."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from comfyui_dno.dno_core import TYPICAL, Problem

from .cheap import REDRAWN, loop_of
from .compare import effect, pairs, returned
from .curves import Curve
from .gains import SHARE, Moment, moment, reach
from .gradient_tables import REFERENCE
from .plan import Arm, Experiment, tests
from .running import Results, do, gather
from .setting import Bench, Lab, climbed
from .units import Units

TURNS = 3


@dataclass(frozen=True)
class Price:
    """Seconds an image: the first drawing, an iteration, what is drawn besides the loop, and an
    iteration after the first `before`, where an arm goes on otherwise from there (0: never)."""

    start: float
    iteration: float
    redraw: float = 0.0
    later: float = 0.0
    before: int = 0

    def until(self, iteration: int) -> float:
        first = min(iteration, self.before) if self.before else iteration
        later = (iteration - first) * self.later
        return self.start + first * self.iteration + self.redraw + later


def prices(results: Results, turns: int) -> dict[str, Price]:
    """What the arms take, measured in turns on the first batch of the tests: medians."""
    arms = [arm for arm in results.experiment.arms if arm.name in results.curves]
    cases = tests(arms[0], 1.0)[0].cases
    terms = climbed(arms[0].recipe.reward, cases)

    def work(bench: Bench) -> dict[str, Price]:
        found: dict[str, list[Price]] = {arm.name: [] for arm in arms}
        for _ in range(turns):
            for arm in arms:
                found[arm.name].append(_timed(arm, bench))
        return {name: _typical(timed, len(cases)) for name, timed in found.items()}

    return Lab().at_bench(cases, terms, work, steps=arms[0].recipe.steps)


def _typical(timed: Sequence[Price], images: int) -> Price:
    def middle(name: str) -> float:
        return median(getattr(price, name) for price in timed) / images

    return Price(*map(middle, ("start", "iteration", "redraw", "later")), timed[0].before)


def _timed(arm: Arm, bench: Bench) -> Price:
    """One start and one iteration of each part, for the whole batch."""
    recipe = arm.recipe
    start, iteration = _part(bench, recipe.options)
    last = recipe.options.get("finish_iterations", 0)
    late = recipe.options.get("late_iterations", 0)
    if last:
        draw, later = _part(bench, {**recipe.options, "optimize_steps": 0})
        # the first picture besides, and all steps where the last part begins
        return Price(start, iteration, 2 * draw - start, later, recipe.iterations - last)
    if late:
        _, later = _part(bench, recipe.options, late=1)
        return Price(start, iteration, 0.0, later, recipe.iterations - late)
    if "optimize_steps" in recipe.options:
        return Price(start, iteration, REDRAWN * _drawing(bench))
    return Price(start, iteration)


def _part(bench: Bench, options: Mapping[str, Any], late: int = 0) -> tuple[float, float]:
    """Seconds of the first drawing and of an iteration; of a late one, with `late`."""
    one_part = {**options, "finish_iterations": 0, "late_iterations": late}
    run = loop_of(bench, 0.01, 1, one_part)
    marks = [time.process_time()]
    for _ in islice(run, 2):
        marks.append(time.process_time())
    return marks[1] - marks[0], marks[2] - marks[1]


def _drawing(bench: Bench) -> float:
    began = time.process_time()
    Problem(bench.noise_map, bench.decoder, bench.problem.terms).evaluate(bench.z, (1.0,))
    return time.process_time() - began


def compared(results: Results, price: Mapping[str, Price]) -> dict[str, Any]:
    """Every arm at the moment at which it has the gain, and the fastest with typical noise."""
    reference = results.curves[REFERENCE]
    rows = max(len(curve) for curve in reference) - 1
    end = moment(reference, rows)
    base = reach(reference, SHARE * end.gain)
    assert base is not None
    arms = {
        arm.name: _row(arm, results, base, end, price)
        for arm in results.experiment.arms
        if arm.name in results.curves
    }
    fit = [name for name, row in arms.items() if name != REFERENCE and row["typical"]]
    best = max(fit, key=lambda name: arms[name]["speed_up"], default=None)
    return {
        "share": SHARE,
        "prompts": len(reference),
        "gain_of_reference": end.gain,
        "judge_of_reference": end.judge,
        "arms": arms,
        "best": best,
        "speed_up": arms[best]["speed_up"] if best else 0.0,
        "speed_up_over_all_iterations": (
            arms[best]["speed_up_over_all_iterations"] if best else 0.0
        ),
        "judge_minus_reference": arms[best]["judge_minus_reference"] if best else None,
    }


def _row(
    arm: Arm, results: Results, base: Moment, end: Moment, price: Mapping[str, Price]
) -> dict[str, Any]:
    curves, reference = results.curves[arm.name], results.curves[REFERENCE]
    last = moment(curves, max(len(curve) for curve in curves) - 1)
    row: dict[str, Any] = {
        "label": arm.label,
        "learning_rate": results.tuned[arm.name].knob,
        "seconds_an_iteration": price[arm.name].iteration,
        "iterations": last.iteration,
        "seconds_of_all": price[arm.name].until(last.iteration),
        "cost_of_all": last.cost,
        "gain_of_all": last.gain,
        "share_of_all": last.gain / end.gain,
        "judge_of_all": last.judge,
        "p_z_lowest_of_all": last.lowest,
        **dict.fromkeys(("iteration", "seconds", "cost", "judge", "speed_up")),
        "typical": False,
    }
    found = reach(curves, SHARE * end.gain)
    if found is None:
        return row
    judge = effect(pairs(_until(curves, found.row), _until(reference, base.row)), returned("judge"))
    seconds = price[arm.name].until(found.iteration)
    return row | {
        "iteration": found.iteration,
        "seconds": seconds,
        "cost": found.cost,
        "judge": found.judge,
        "judge_minus_reference": [judge.mean, judge.low, judge.high],
        "p_z_lowest": found.lowest,
        "p_z_mean": found.quantile,
        "speed_up": price[REFERENCE].until(base.iteration) / seconds,
        "speed_up_over_all_iterations": price[REFERENCE].until(end.iteration) / seconds,
        "speed_up_cost": base.cost / found.cost,
        "typical": found.lowest > TYPICAL,
    }


def _until(curves: Sequence[Curve], row: int) -> list[Curve]:
    return [curve.until(min(row, len(curve) - 1)) for curve in curves]


def measured(experiment: Experiment, folder: Path, plain: int, turns: int) -> dict[str, Any]:
    with Units(folder, plain_samples=plain) as units:
        failed = do(experiment, units, 0)
        if failed:
            raise SystemExit("\n".join(f"{name} failed: {why}" for name, why in failed.items()))
        results = gather(experiment, units)
    return compared(results, prices(results, turns))
