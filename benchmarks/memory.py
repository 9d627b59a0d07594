"""Benchmark (c): peak memory of an iteration, over sampling steps and over the batch.

    python benchmarks/memory.py [--quick] [--output FILE]

Live bytes of tensors beyond the loaded models, at their peak within a run of two iterations on the
demo model (exact gradient, regularizer on): what a GPU would have to hold, but for what an
operation takes within itself. What is kept for the trajectory, in main memory on a GPU, counts
here too. Beside each policy for the graphs stands the published algorithm (one image at a time).
Bytes do not depend on the machine's load. `--quick` (2 and 4 steps, batch 1) only prints,
unless an --output is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT
from demo_run import CFG, PIXELS, Inside, demo_request, run_around
from live_bytes import LiveBytes
from writing import machine, rounded, write

RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
PUBLISHED = "published"
POLICIES = ("recompute blocks", "recompute", "store")
STEPS, BATCHES, BATCH_STEPS = (5, 10, 20, 50), (1, 2, 4), 10


def peak(policy: str, steps: int, batch: int, pixels: int = PIXELS) -> float:
    """MB (2^20 bytes) of a policy's run, or of the published algorithm's ("published")."""
    return (
        _published_peak(steps, pixels)
        if policy == PUBLISHED
        else _our_peak(policy, steps, batch, pixels)
    )


def _our_peak(policy: str, steps: int, batch: int, pixels: int) -> float:
    live = LiveBytes()

    def make(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        live.restart()
        yield from iterations

    request = demo_request(steps, 1, batch, pixels, graph_memory=policy)
    run_around(demo_request(1, 0), lambda inside, iterations: iterations)  # loads and caches
    with live:
        run_around(request, make)
        return live.peak / 2**20


def _published_peak(steps: int, pixels: int) -> float:
    found: list[float] = []

    def make(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        first = next(iterations)  # its forward pass is what the denoiser's random states come from
        with LiveBytes() as live:
            run = inside.published()
            run.iteration()
            run.gradient()
        found.append(live.peak / 2**20)
        yield first

    run_around(demo_request(steps, 1, pixels=pixels), make)
    return found[0]


def over_steps(counts: tuple[int, ...]) -> dict[str, Any]:
    """Peaks by policy, and the last over the first."""
    found: dict[str, Any] = {}
    for policy in (*POLICIES, PUBLISHED):
        peaks = {str(count): peak(policy, count, 1) for count in counts}
        found[policy] = {"mb": peaks, "ratio": peaks[str(counts[-1])] / peaks[str(counts[0])]}
        print(f"{policy}, steps: {rounded(found[policy])}", flush=True)
    return found


def over_batch(sizes: tuple[int, ...], steps: int) -> dict[str, Any]:
    found = {}
    for policy in POLICIES:
        found[policy] = {str(size): peak(policy, steps, size) for size in sizes}
        print(f"{policy}, batch: {rounded(found[policy])}", flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    counts = list(result["over_steps"][PUBLISHED]["mb"])
    sizes = [size for size in next(iter(result["over_batch"].values())) if size != "1"]
    head = [f"{count} steps" for count in counts] + [f"{counts[-1]} against {counts[0]}"]
    head += [f"batch {size}" for size in sizes]
    lines = ["| graphs | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for policy, found in result["over_steps"].items():
        cells = [f"{found['mb'][count]:.3g}" for count in counts] + [f"{found['ratio']:.2f}"]
        batch = result["over_batch"].get(policy, {})
        cells += [f"{batch[size]:.3g}" if size in batch else "-" for size in sizes]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 and 4 steps, batch 1, print only")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    counts, sizes, steps = ((2, 4), (1,), 2) if given.quick else (STEPS, BATCHES, BATCH_STEPS)
    result = {
        "command": "python benchmarks/memory.py",
        **machine(),
        "model": "demo model",
        "pixels": PIXELS,
        "cfg": CFG,
        "over_steps": over_steps(counts),
        "batch_steps": steps,
        "over_batch": over_batch(sizes, steps),
    }
    print(table(result))
    if given.output or not given.quick:
        write(given.output or RESULTS, rounded(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
