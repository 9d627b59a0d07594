"""The batched probability regularizer against a plain loop over its permutations, in one process.

    python benchmarks/regularizer.py [--numbers 835584] [--permutations 100] [--repeats 3]

Both compute L_reg and its gradient for the same noise and the same permutations, on one thread.
The loop is the published algorithm: every permutation drawn on the CPU, four scalars fetched, a
singular value decomposition for the norm, autograd for the gradient. Ours gathers in chunks,
multiplies in one batch, and knows its gradient. P(z) with its kept permutations is timed as well.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dno_core.permutations import Permutations, lowest_log_p, permutation_penalty  # noqa: E402

K = 4
LOG_2 = math.log(2)


def loop_penalty(z: Tensor, count: int, seed: int) -> tuple[float, Tensor]:
    """L_reg of noise z [n] and its gradient, one permutation after another."""
    leaf = z.clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    total = minus_log_bounds(leaf)
    for _ in range(count):
        order = torch.randperm(len(z), generator=generator).to(z.device)
        total = total + minus_log_bounds(leaf[order]) / count
    total.backward()
    assert leaf.grad is not None
    return total.item(), leaf.grad


def minus_log_bounds(numbers: Tensor) -> Tensor:
    """-log(p1 / 2) - log(p2 / 2) of one arrangement; four scalars are read, as published."""
    rows = numbers[: len(numbers) // K * K].view(-1, K)
    m = len(rows)
    m1 = torch.linalg.vector_norm(rows.mean(0))
    eye = torch.eye(K, dtype=rows.dtype, device=rows.device)
    m2 = torch.linalg.matrix_norm(rows.T @ rows / m - eye, ord=2)
    over = torch.clamp(torch.sqrt(1 + m2) - 1 - math.sqrt(K / m), min=0)
    log_p1 = torch.clamp(-m * m1**2 / (2 * K), max=-LOG_2)
    log_p2 = torch.clamp(-m * over**2 / 2, max=-LOG_2)
    _ = (m1.item(), m2.item(), log_p1.item(), log_p2.item())
    return -log_p1 - log_p2


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Process time of each run: what other programs take of the machine does not count."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=835_584, help="SD1.5, 51 noises")
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, b = given.numbers, given.permutations
    z = torch.randn(n, generator=torch.Generator().manual_seed(0))
    orders = Permutations(n, b, 1, z.device)

    value, gradient = permutation_penalty(z[None], K, orders)
    expected, slope = loop_penalty(z, b, 1)
    error = float((gradient[0] - slope).norm() / slope.norm())
    assert abs(float(value) - expected) < 1e-3 and error < 1e-2, (float(value), expected, error)

    ours = seconds(lambda: permutation_penalty(z[None], K, orders), given.repeats)
    loop = seconds(lambda: loop_penalty(z, b, 1), given.repeats)
    drawn = seconds(lambda: [None for _ in orders.chunks(1)], given.repeats)
    drawn_by_loop = seconds(lambda: [torch.randperm(n) for _ in range(b)], given.repeats)
    kept = Permutations(n, b, 1, z.device, keep=True)
    lowest_log_p(z[None], K, kept)
    measure = seconds(lambda: lowest_log_p(z[None], K, kept), given.repeats)
    result = {
        "numbers": n,
        "permutations": b,
        "loop_seconds": round(statistics.median(loop), 3),
        "ours_seconds": round(statistics.median(ours), 3),
        "ratio": round(statistics.median(loop) / statistics.median(ours), 2),
        "loop_drawing_seconds": round(statistics.median(drawn_by_loop), 3),
        "ours_drawing_seconds": round(statistics.median(drawn), 3),
        "p_of_z_seconds": round(statistics.median(measure), 3),
        "gradient_relative_difference": error,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
