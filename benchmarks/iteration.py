"""Benchmark (a): one iteration of DNO Sampler against one of the published algorithm.

    python benchmarks/iteration.py [--quick] [--steps 10 50] [--repeats 5] [--output FILE]

Both climb CLIPScore on the demo model with the exact gradient and the regularizer on, in one
process and turn by turn on the same noise: an iteration of the node as it is (recording, P(z) and
status included), then one of benchmarks/published.py. Time is process time on one thread, so what
other programs take does not count; the ratio is the median over the turns. What each waste of the
published scripts costs is measured by leaving it out. `--quick` (2 steps, 1 turn) only prints,
unless an --output is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from operator import sub, truediv
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT
from demo_run import CFG, PIXELS, Inside, demo_request, run_around
from published import ALL_WASTE, NO_WASTE, Published, Waste
from writing import machine, rounded, write

RESULTS = ROOT / "benchmarks" / "results" / "iteration.json"
POLICIES = ("recompute", "store")
OURS, ALL, NOTHING = "ours", "published", "published without waste"


def contenders(inside: Inside) -> dict[str, Published]:
    """The published algorithm whole, without each of its wastes, and without all of them."""
    from comfyui_dno.dno_core import PermutationRegularizer

    def run(waste: Waste) -> Published:
        return inside.published(
            waste=waste, regularize=lambda noise: PermutationRegularizer().penalty(noise, 1)
        )

    partial = {f"without {field.name}": run(ALL_WASTE.without(field.name)) for field in WASTES}
    return {ALL: run(ALL_WASTE), **partial, NOTHING: run(NO_WASTE)}


WASTES = [field for field in fields(Waste) if field.name != "weight_decay"]
"""Weight decay costs quality, not time."""


def turns(steps: int, repeats: int, policy: str, whole: bool) -> dict[str, list[float]]:
    """Seconds of every contender, turn by turn, beside a run of the node."""
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        done = work()
        taken.setdefault(name, []).append(time.process_time() - began)
        return done

    def make(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        rivals = contenders(inside)
        if not whole:
            rivals = {ALL: rivals[ALL]}
        for turn in range(repeats + 1):
            began = time.process_time()
            yield next(iterations)
            taken.setdefault(OURS, []).append(time.process_time() - began)
            if turn == 0:  # a first iteration has no gradient behind it
                taken.clear()
                rivals[ALL].gradient()
                continue
            for name in sorted(rivals, reverse=turn % 2 == 0):  # drifts cancel
                timed(name, rivals[name].iteration)

    # one more than there are turns: the run ends at its last iteration, before the rivals' turn
    run_around(demo_request(steps, repeats + 1, graph_memory=policy), make)
    return taken


def summary(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Median seconds and, where all were measured, what each waste adds to them: the median of
    the differences within a turn."""
    medians = {name: statistics.median(values) for name, values in taken.items()}

    def middle(name: str, work: Callable[[float, float], float]) -> float:
        return statistics.median(map(work, taken[ALL], taken[name]))

    found: dict[str, Any] = {
        "ours_seconds": medians[OURS],
        "published_seconds": medians[ALL],
        "ratio": middle(OURS, truediv),
    }
    if NOTHING in medians:
        found["published_without_waste_seconds"] = medians[NOTHING]
        found["waste_seconds"] = {
            field.name: middle(f"without {field.name}", sub) for field in WASTES
        }
    return found


def measure(steps: int, repeats: int) -> dict[str, Any]:
    return {
        policy: summary(turns(steps, repeats, policy, whole=policy == POLICIES[0]))
        for policy in POLICIES
    }


def gradient_difference(steps: int) -> float:
    """|published - ours| / |ours|, of the same objective on the same noise."""
    found: list[float] = []

    def make(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        first = next(iterations)  # its forward pass is what the denoiser's random states come from
        theirs = contenders(inside)[NOTHING]
        theirs.gamma = 0.0
        theirs.gradient()
        assert theirs.noise.grad is not None
        problem, z = inside.problem, inside.z
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        ours = problem.gradient(z, evaluation, evaluation.image_gradient)
        found.append(float((theirs.noise.grad + ours).norm() / ours.norm()))
        yield first

    run_around(demo_request(steps, 1), make)
    return found[0]


def table(measured: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| steps | graphs | ours, s | published, s | ratio |", "|---|---|---|---|---|"]
    for steps, policies in measured.items():
        for policy, found in policies.items():
            cells = [found[key] for key in ("ours_seconds", "published_seconds", "ratio")]
            lines.append(f"| {steps} | {policy} | " + " | ".join(f"{c:.3g}" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 steps, 1 turn, print only")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    steps, repeats = ([2], 1) if given.quick else (given.steps, given.repeats)
    measured: dict[str, Any] = {}
    for count in steps:
        measured[str(count)] = rounded(measure(count, repeats))
        print(f"{count} steps: {measured[str(count)]}", flush=True)
    print(table(measured))
    result = {
        "command": "python benchmarks/iteration.py",
        **machine(),
        "model": "demo model",
        "pixels": PIXELS,
        "cfg": CFG,
        "turns": repeats,
        "gradient_relative_difference": rounded(gradient_difference(min(steps))),
        "steps": measured,
    }
    if given.output or not given.quick:
        write(given.output or RESULTS, result)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
