"""How far a cheap gradient points away from the exact one, at the same noise."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comfyui_dno.dno_core import GradientMode, optimize, sweep
from comfyui_dno.dno_core import Path as Run

from .cases import cases, development_prompts
from .climbs import make, settings_of
from .files import write_text
from .regularizer import PAPER
from .setting import Bench, Lab, climbed

SCHEDULES = (8, 20, 50)
REWARDS = ("clip_score", "darkness")
LAST = (1, 2, 3, 5)
SPREAD = (3, 5, 8, 10, 16)
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
PROMPTS = 4
CLIMB = 10
RATE = 0.015


def measure(path: Path, lab: Lab, small: bool = False) -> None:
    """Write the cosines to `path`, unless they are there: a row a schedule, moment and mode."""
    if path.is_file():
        return
    prompts = cases(development_prompts(), 1 if small else PROMPTS, 1)
    climb = 1 if small else CLIMB
    rows: list[dict[str, Any]] = []
    for steps in (3,) if small else SCHEDULES:
        for reward in REWARDS[:1] if small else REWARDS:

            def work(bench: Bench) -> list[dict[str, Any]]:
                return list(_rows(bench, climb))

            found = lab.at_bench(prompts, climbed(reward, prompts), work, steps=steps)
            rows += [{"reward": reward, "steps": steps, **row} for row in found]
    content = {"prompts": [case.prompt for case in prompts], "rate": RATE, "rows": rows}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _rows(bench: Bench, climb: int) -> Iterator[dict[str, Any]]:
    """At the noise one starts from, and after `climb` iterations with the exact gradient."""
    keeper = make(PAPER)
    settings = settings_of(RATE, keeper)
    run = optimize(
        bench.problem,
        bench.z,
        lambda index: settings,
        seed=bench.key,
        regularizer=keeper,
        check_tolerance=None,
    )
    for iteration in islice(run, 0, climb + 1, climb):
        for mode, gradient, exact in _gradients(bench, iteration.z):
            yield {
                "iteration": iteration.index,
                "mode": mode,
                "cosine": round(float(cosine(gradient, exact).mean()), 3),
                "per_noise": round(float(cosine_per_noise(gradient, exact).mean()), 3),
            }


def _gradients(bench: Bench, z: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, gradient, exact gradient) of every mode, all from one forward run."""
    evaluation = bench.problem.evaluate(z, (1.0,), differentiate=True)
    assert evaluation.image_gradient is not None
    run: Run = evaluation.path
    v = bench.decoder.pull(run.final, evaluation.image_gradient)
    noise_map: Any = bench.noise_map
    steps = len(noise_map.steps)

    def pulled(exact_at: Collection[int] | None, hold: bool = False, cut: bool = False) -> Tensor:
        return sweep(
            noise_map.denoise,
            noise_map.steps,
            run.latents,
            z[0],
            v,
            noise_map.start,
            exact_at,
            hold,
            cut,
        )

    exact = pulled(None)
    yield "linear", pulled(()), exact
    for k in LAST:
        last = range(max(steps - k, 0), steps)
        yield f"last {k}", pulled(last), exact
        yield f"last {k}, earlier ones cut", pulled(last, cut=True), exact
    for k in SPREAD:
        if k < steps:
            spread = GradientMode("spread k", k)
            yield f"spread {k}", pulled(spread.exact_at(steps), spread.holds), exact
    for place in PLACES:
        yield f"one step, at {place:g}", pulled({round(place * (steps - 1))}), exact


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[B] cosines of gradients [N,B,...], all noises of an image as one vector."""
    rows = [x.movedim(1, 0).flatten(1) for x in (a, b)]
    return torch.nn.functional.cosine_similarity(*rows, dim=1)


def cosine_per_noise(a: Tensor, b: Tensor) -> Tensor:
    """[B] means over the noises of the cosine within each; Adam, which makes all parts of z move
    alike, sees this one. 0 where a mode leaves a noise without a gradient."""
    rows = [x.flatten(2) for x in (a, b)]
    return torch.nn.functional.cosine_similarity(*rows, dim=2).mean(0)
