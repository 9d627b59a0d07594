"""How well Hybrid-2 knows what it has not probed: the measure behind its recommended settings.

    python benchmarks/probes.py [--output benchmarks/results]

On the demo model, four prompts, 10 steps: the image gradient that Hybrid-2 makes of its probes
predicts what 16 other, antithetic, pairs of probes of the same scale gain. The figure is the
correlation of prediction and gain over the pairs, mean over the pictures: 1 is a perfect
gradient, 0 chance. Writes probes.json; about four minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT, map_pack
from torch import Tensor

PROMPTS = ("cat face", "red apple on blue", "pig, flat style", "sunflower")
REWARDS = ("jpeg_compressibility", "darkness", "clip_score", "contrast")
SCALES = (0.01, 0.03, 0.1, 0.2)
RUNS = (4, 8, 16)
HELD_OUT = 16
STEPS, SEED = 10, 11


def differences(problem: Any, z: Tensor, scale: float, antithetic: bool, key: int) -> Iterator[Any]:
    """Endless (gains [K,B] of every term in its own spread, moves [B,P]) for steps of the noise."""
    from comfyui_dno.dno_core.estimators.probes import BlackBox, noise_differences

    weights = (1.0,) * len(problem.terms)
    start = problem.evaluate(z, weights)
    spread = torch.tensor([term.reward.scale for term in problem.terms])[:, None]

    class EachTerm(BlackBox):
        def __call__(self, image: Tensor) -> Tensor:
            return problem.score(image, weights, differentiate=False)[0] / spread

    found = noise_differences(
        EachTerm(problem, weights, start.scores / spread),
        z,
        start.image,
        key,
        count=10**6,
        scale=scale,
        antithetic=antithetic,
        gaussian=True,
        probe_batch=0,
    )
    for _, gain, move in found:
        yield gain, move.flatten(1)


def taken(found: Iterator[Any], count: int) -> tuple[Tensor, Tensor]:
    gains, moves = zip(*itertools.islice(found, count), strict=True)
    return torch.stack(gains), torch.stack(moves)


def correlations(bench: Any) -> list[dict[str, Any]]:
    from comfyui_dno.dno_core.estimators.zeroth_order import image_slope

    rows = []
    for scale in SCALES:
        gains, moves = taken(differences(bench.problem, bench.z, scale, True, 1), HELD_OUT)
        for antithetic in (False, True):
            most = max(RUNS) // (1 + antithetic)
            known = taken(differences(bench.problem, bench.z, scale, antithetic, 2), most)
            for runs, combination in itertools.product(RUNS, ("least squares", "sum")):
                count = runs // (1 + antithetic)
                row = {"scale": scale, "runs": runs, "antithetic": antithetic}
                row |= {"combination": combination}
                for term, name in enumerate(REWARDS):
                    slope = image_slope(
                        known[0][:count, term], known[1][:count], combination, "fit"
                    )
                    predicted = torch.einsum("bp,qbp->qb", slope, moves)
                    row[name] = round(float(correlation(predicted, gains[:, term])), 3)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Over the first dimension, through zero (both change sign with the step); mean over images."""
    return torch.nn.functional.cosine_similarity(a, b, dim=0).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    began = time.perf_counter()
    map_pack()
    from comfyui_dno.benchmarks.experiments.cases import Case
    from comfyui_dno.benchmarks.experiments.setting import Lab
    from comfyui_dno.dno_core import Term
    from comfyui_dno.rewards import Context, create

    terms = tuple(Term(create(name), context=Context(prompts=PROMPTS)) for name in REWARDS)
    cases = [Case(prompt, SEED + index) for index, prompt in enumerate(PROMPTS)]
    rows = Lab().at_bench(cases, terms, correlations, steps=STEPS)
    result = {
        "command": "python benchmarks/probes.py",
        "model": "demo/model.safetensors",
        "prompts": PROMPTS,
        "steps": STEPS,
        "held_out_pairs": HELD_OUT,
        "seconds": round(time.perf_counter() - began, 1),
        "correlations": rows,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (given.output / "probes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
