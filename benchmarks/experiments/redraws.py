"""Whether few steps tell which noise is good in all of them: scores before and after a redraw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem

from .cases import Case, cases, development_prompts
from .files import write_text
from .setting import Bench, Lab, climbed

STEPS = 50
COUNTS = (4, 5, 8, 10, 16, 25)
PROMPTS, SEEDS = 8, 4


def measure(path: Path, lab: Lab, small: bool = False) -> None:
    """Write to `path`, unless it is there, how plain samples in few steps go with those in all."""
    if path.is_file():
        return
    prompts = cases(development_prompts(), 2 if small else PROMPTS, 2 if small else SEEDS)
    steps, counts = (4, (2, 3)) if small else (STEPS, COUNTS)
    terms = climbed("clip_score", prompts)
    scores = lab.at_bench(prompts, terms, lambda bench: _scores(bench, counts), steps=steps)
    rows = [{"steps": c, **compared(scores[c], scores[0], prompts)} for c in counts]
    write_text(path, json.dumps({"samples": len(prompts), "rows": rows}, indent=1) + "\n")


def _scores(bench: Bench, counts: tuple[int, ...]) -> dict[int, Tensor]:
    """Steps (0: all) -> objective [B] and pictures of the same noise."""
    found = {}
    for count in (0, *counts):
        noise_map: Any = bench.noise_map.coarse(count) if count else bench.noise_map
        problem = Problem(noise_map, bench.decoder, bench.problem.terms)
        found[count] = problem.evaluate(bench.z, (1.0,)).objective
    return found


def compared(few: Tensor, all_steps: Tensor, run: list[Case]) -> dict[str, float]:
    """Correlation of the scores [B], over all samples and within prompts, and their mean shift."""
    names = sorted({case.prompt for case in run})
    groups = [torch.tensor([case.prompt == name for case in run]) for name in names]

    def centred(values: Tensor) -> Tensor:
        out = values.clone()
        for group in groups:
            out[group] -= values[group].mean()
        return out

    def correlation(a: Tensor, b: Tensor) -> float:
        return round(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), 3)

    return {
        "correlation": correlation(few, all_steps),
        "within_prompts": correlation(centred(few), centred(all_steps)),
        "shift": round(float((few - all_steps).mean()), 3),
    }
