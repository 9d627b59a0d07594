"""The toy of the DNO tutorial: particles on a 2-D ring climb a reward through their noise.

    python benchmarks/toy.py --seeds 5      the numbers of benchmarks/results/toy.json
    python benchmarks/toy.py --method hybrid_2      those of toy_hybrid_2.json
    python benchmarks/toy.py --quick        fewer particles and one seed, about a minute

Data: uniform on a ring of radius 0.8 to 1.2, 10,000 points. Denoiser: an MLP trained here. Sampler:
the tutorial's own, complete renoising over 100 equal steps of the noise level 1 - a from 1 - 1e-5
to 1e-5, 101 noises. Optimizer: Adam, learning rate 0.01, no regularizer. Method: the gradient,
clipped at norm 1; or Hybrid-2 as the tutorial has it (2 one-sided probes, mu 0.01, unit norm a
particle, no clip), to which the reward is a black box. The published curves are those of the
authors' own (unpublished) weights.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dno_core import (  # noqa: E402
    Backpropagation,
    FunctionDecoder,
    GradientEstimator,
    Hybrid2,
    NoRegularizer,
    Problem,
    Settings,
    Term,
    Typicality,
    optimize,
    vjp,
)
from dno_core.noise_map.sampler import Path as LatentPath  # noqa: E402

PUBLISHED = {
    "gradient": {0: -0.325, 20: 1.000, 40: 1.231, 60: 1.385, 80: 1.487, 100: 1.552},
    "hybrid_2": {0: -0.306, 50: 0.828, 100: 0.899, 150: 0.974, 200: 1.031, 250: 1.080},
}
METHODS: dict[str, tuple[GradientEstimator, float]] = {
    "gradient": (Backpropagation(), 1.0),
    "hybrid_2": (
        Hybrid2(
            probes=2,
            scale=0.01,
            antithetic=False,
            gaussian=False,
            combination="sum",
            scaling="unit",
            probe_batch=2,
        ),
        0.0,
    ),
}
"""The estimator and the largest gradient norm of a particle (0: no clip)."""

RING_MEAN, RING_STD = -0.200, 1.048
"""Reward of the data itself (2,000,000 draws)."""

ARCHITECTURE = (
    "MLP 2 + 32 -> 128 -> 128 -> 128 -> 2, SiLU, a residual around each inner layer; the noise "
    "level enters as 16 sines and 16 cosines of log(s); eps-prediction; average of the weights"
)
LEVELS = torch.linspace(1 - 1e-5, 1e-5, 101)
"""Noise levels 1 - a: 100 equal steps."""


class Denoiser(nn.Module):
    """eps(x, level) for x = sqrt(1 - level) x0 + sqrt(level) eps, x [B,2], level [] or [B]."""

    def __init__(self, width: int = 128, frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 0.7, frequencies))
        self.enter = nn.Linear(2 + 2 * frequencies, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        noise_to_signal = 0.5 * torch.log(level / (1 - level))
        angles = noise_to_signal.reshape(-1, 1) * self.frequencies
        code = torch.cat([angles.sin(), angles.cos()], 1).expand(len(x), -1)
        hidden = F.silu(self.enter(torch.cat([x, code], 1)))
        for layer in self.inner:
            hidden = hidden + F.silu(layer(hidden))
        return self.leave(hidden)


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Points [count,2], uniform in radius (0.8 to 1.2) and angle."""
    radius = 0.8 + 0.4 * torch.rand(count, generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def train(seed: int, iterations: int, batch: int = 1024) -> Denoiser:
    """Adam on the eps-prediction error, cosine learning rate; returns the averaged weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = ring(10_000, generator)
    model, average = Denoiser(), Denoiser()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        x0 = data[torch.randint(len(data), (batch,), generator=generator)]
        level = torch.rand(batch, generator=generator) * (1 - 2e-5) + 1e-5
        eps = torch.randn(batch, 2, generator=generator)
        noisy = (1 - level).sqrt()[:, None] * x0 + level.sqrt()[:, None] * eps
        loss = F.mse_loss(model(noisy, level), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 0.005)
    return average.requires_grad_(False)


@dataclass(frozen=True)
class RenoisingMap:
    """The tutorial's sampler as a map of 101 noises z [101,B,2,1,1], one particle an image.

    x_0 = z_0;   x_{i+1} = sqrt(a_{i+1}) D(x_i) + sqrt(1 - a_{i+1}) z_{i+1}
    """

    model: Denoiser

    def denoised(self, x: Tensor, index: int) -> Tensor:
        level = LEVELS[index]
        flat = x.flatten(1)
        eps = self.model(flat, level)
        return ((flat - level.sqrt() * eps) / (1 - level).sqrt()).view_as(x)

    @torch.no_grad()
    def forward(self, z: Tensor) -> LatentPath:
        x, latents = z[0], []
        for index, (level, noise) in enumerate(zip(LEVELS[1:], z[1:], strict=True)):
            latents.append(x)
            x = (1 - level).sqrt() * self.denoised(x, index) + level.sqrt() * noise
        return LatentPath(tuple(latents), x)

    def pull(self, z: Tensor, path: LatentPath, v: Tensor) -> Tensor:
        dz = torch.zeros_like(z)
        for index in reversed(range(len(path.latents))):
            level = LEVELS[index + 1]
            dz[index + 1] = level.sqrt() * v
            (v,) = vjp(lambda x, i=index: self.denoised(x, i), [path.latents[index]], v)
            v = (1 - level).sqrt() * v
        dz[0] = v
        return dz


class RingReward:
    """r(x) = sin(4 pi x1) + sin(4 pi x2) - ((x1 - 1)^2 - x2^2) / 5, of "images" (x + 4) / 8."""

    name, unit, scale, differentiable = "ring", "", 1.0, True
    modules: tuple[nn.Module, ...] = ()

    def score(self, images: Tensor, context: Any) -> Tensor:
        x, y = (images.flatten(1) * 8 - 4).unbind(1)
        waves = torch.sin(4 * math.pi * x) + torch.sin(4 * math.pi * y)
        return waves - ((x - 1).square() - y.square()) / 5


def climb(
    model: Denoiser, seed: int, particles: int, iterations: int, method: str
) -> dict[str, Any]:
    """DNO on `particles` particles, each a problem of its own; the curve of the mean."""
    estimator, clip = METHODS[method]
    problem = Problem(
        RenoisingMap(model), FunctionDecoder(lambda x: (x + 4) / 8), (Term(RingReward()),)
    )
    generator = torch.Generator().manual_seed(1000 + seed)
    z = torch.randn(len(LEVELS), particles, 2, 1, 1, generator=generator)
    run = optimize(
        problem,
        z,
        lambda index: Settings(learning_rate=0.01, gamma=0.0, weights=(1.0,), clip=clip),
        seed=seed,
        estimator=estimator,
        regularizer=NoRegularizer(),
        typicality=Typicality(permutations=1),
        check_tolerance=None,
    )
    curve, errors, saturated = [], [], 0.0
    for iteration in itertools.islice(run, iterations + 1):
        curve.append(float(iteration.objective.mean()))
        errors.append(float(iteration.objective.std()) / math.sqrt(particles))
        saturated = max(saturated, float(iteration.saturated.max()))
    return {
        "seed": seed,
        "curve": curve,
        "standard_error": errors,
        "saturated": saturated,
        "plain": plain_rewards(problem, 20 * particles, seed),
    }


def plain_rewards(problem: Problem, particles: int, seed: int) -> tuple[float, float]:
    """Mean reward of many plain samples and its standard error: what iteration 0 is a draw of."""
    generator = torch.Generator().manual_seed(2000 + seed)
    z = torch.randn(len(LEVELS), particles, 2, 1, 1, generator=generator)
    rewards = problem.evaluate(z, (1.0,)).objective
    return float(rewards.mean()), float(rewards.std()) / math.sqrt(particles)


def judge(runs: list[dict[str, Any]], known: dict[int, float], iterations: int) -> dict[str, Any]:
    """The three targets: start, gain, rising throughout (seen every tenth iteration)."""
    curve = torch.tensor([run["curve"] for run in runs]).mean(0)
    error = math.sqrt(sum(run["standard_error"][0] ** 2 for run in runs)) / len(runs)
    gain = float(curve[iterations] - curve[0])
    published = known[iterations] - known[0]
    tenth = curve[:: max(iterations // 10, 1)]
    return {
        "start": float(curve[0]),
        "start_standard_error": error,
        "start_standard_errors_from_ring": abs(float(curve[0]) - RING_MEAN) / error,
        "plain_mean": sum(run["plain"][0] for run in runs) / len(runs),
        "plain_standard_error": math.sqrt(sum(run["plain"][1] ** 2 for run in runs)) / len(runs),
        "end": float(curve[iterations]),
        "gain": gain,
        "published_gain": published,
        "share_of_published_gain": gain / published,
        "rising": bool((tenth.diff() > 0).all()),
        "mean_curve": {str(i): round(float(curve[i]), 4) for i in known if i <= iterations},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="gradient")
    parser.add_argument("--seeds", type=int, default=5, help="models and noises, one each a seed")
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--iterations", type=int, help="one that a reward was published for")
    parser.add_argument("--training", type=int, default=8_000, help="training iterations")
    parser.add_argument("--quick", action="store_true", help="1 seed, 200 particles, 4,000")
    parser.add_argument("--output", type=Path, default=None, help="JSON; a CSV is put beside it")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.particles, given.training = 1, 200, 4_000
    known = PUBLISHED[given.method]
    iterations = given.iterations or max(known)
    if iterations not in known:
        parser.error(f"--iterations: choose one of {', '.join(map(str, sorted(known)[1:]))}")
    torch.set_num_threads(1)
    output = given.output
    if output is None and not given.quick:
        name = "toy" if given.method == "gradient" else f"toy_{given.method}"
        output = Path(__file__).parent / "results" / f"{name}.json"
    began, runs = time.perf_counter(), []
    for seed in range(given.seeds):
        model = train(seed, given.training)
        runs.append(climb(model, seed, given.particles, iterations, given.method))
        result = {
            "method": given.method,
            "targets": judge(runs, known, iterations),
            "seeds": [judge([run], known, iterations) for run in runs],
            "published": {str(i): value for i, value in known.items()},
            "ring": {"mean": RING_MEAN, "std": RING_STD},
            "particles": given.particles,
            "training_iterations": given.training,
            "architecture": ARCHITECTURE,
            "torch": torch.__version__.split("+")[0],
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps(result["targets"]), flush=True)
        if output is not None:
            write(output, result, runs)


def write(output: Path, result: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    with open(output.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["iteration", *(f"seed {run['seed']}" for run in runs)])
        for index, row in enumerate(zip(*(run["curve"] for run in runs), strict=True)):
            table.writerow([index, *(f"{value:.4f}" for value in row)])


if __name__ == "__main__":
    main()
