"""What an iteration is made of at the size of SD1.5, ours beside the published algorithm's.

    python benchmarks/full_size_parts.py [--quick] [--pixels 256] [--repeats 1] [--output FILE]

The UNet and VAE of SD1.5 in ComfyUI's own classes with random weights, float32, CFG in one batch,
process time on one thread. An iteration of 50 steps takes a CPU an hour, so its parts are timed on
2 steps and put together: denoiser steps are all alike. A few minutes, 10 GB of memory. `--quick`
(the same network with a handful of channels) only prints, unless an --output is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from checkout import ROOT, start_comfyui
from demo_run import Inside, run_around
from published import ALL_WASTE, PERMUTATIONS, Published, regularization
from writing import machine, rounded, write

RESULTS = ROOT / "benchmarks" / "results" / "full_size_parts.json"
TIMED_STEPS, STEPS = 2, (10, 50)


def sd15_requests(pixels: int, small: bool) -> dict[str, Any]:
    """Runs of TIMED_STEPS on SD1.5's networks by policy; brightness is climbed."""
    start_comfyui()
    from gpu_parts import families, timing

    from comfyui_dno import rewards

    family = families.tiny(families.SD15) if small else families.SD15
    family = family._replace(pixels=pixels)
    device = torch.device("cpu")
    model = families.model(family, torch.float32, device)
    vae = families.vae(device, small, dtype=torch.float32)
    reward = rewards.create("brightness")
    return {
        policy: timing.request(family, model, vae, reward, TIMED_STEPS, graph_memory=policy)
        for policy in ("recompute", "store")
    }


def seconds(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def parts(requests: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of every part; those of a step by the step."""
    found: dict[str, float] = {}

    def recomputed(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        first = next(iterations)
        found.update(_step_parts(inside, repeats))
        found.update(_picture_parts(inside, first.latent, repeats))
        found.update(_noise_parts(inside, repeats))
        yield first

    def stored(inside: Inside, iterations: Iterator[Any]) -> Iterator[Any]:
        first = next(iterations)
        noise_map, z = inside.problem.noise_map, inside.z
        v = torch.ones_like(z[0])

        def kept() -> None:
            noise_map.pull(z, noise_map.forward_to_pull(z), v)

        kept()  # as above
        found["keep_and_pull"] = seconds(kept, repeats) / TIMED_STEPS
        yield first

    run_around(requests["recompute"], recomputed)
    run_around(requests["store"], stored)
    return found


def _step_parts(inside: Inside, repeats: int) -> dict[str, float]:
    noise_map, z = inside.problem.noise_map, inside.z
    path = noise_map.forward(z)
    v = torch.ones_like(path.final)
    noise_map.pull(z, path, v)  # a run's first pull is watched more closely than the others
    published = Published(
        inside.denoise,
        inside.sigmas,
        inside.request.eta,
        inside.decode,
        inside.reward,
        z,
        waste=ALL_WASTE.without("pictures"),
    )

    def checkpointed() -> None:
        with torch.enable_grad():
            published.sample().backward(v)

    work = {
        "forward": lambda: noise_map.forward(z),
        "recompute_and_pull": lambda: noise_map.pull(z, path, v),
        "published_step": checkpointed,
    }
    return {name: seconds(each, repeats) / TIMED_STEPS for name, each in work.items()}


def _picture_parts(inside: Inside, x: torch.Tensor, repeats: int) -> dict[str, float]:
    decoder = inside.problem.decoder
    image = decoder.decode(x)
    v = torch.ones_like(image)

    def whole() -> None:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            inside.decode(leaf).backward(v)

    return {
        "decode": seconds(lambda: decoder.decode(x), repeats),
        "decode_pull": seconds(lambda: decoder.pull(x, v), repeats),
        "published_decode_and_backward": seconds(whole, repeats),
    }


def _noise_parts(inside: Inside, repeats: int) -> dict[str, float]:
    """The regularizer and P(z) of the noise of the longest schedule."""
    from comfyui_dno.dno_core import PermutationRegularizer, Typicality

    shape = (max(STEPS), *inside.z.shape[1:])
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    typicality = Typicality()
    typicality(z)

    def loop() -> None:
        leaf = z.flatten().requires_grad_()
        with torch.enable_grad():
            regularization(leaf, [None] * PERMUTATIONS).backward()

    return {
        "regularizer": seconds(lambda: PermutationRegularizer().penalty(z, 1), repeats),
        "p_of_z": seconds(lambda: typicality(z), repeats),
        "published_regularizer": seconds(loop, repeats),
    }


def composed(part: dict[str, float], steps: int) -> dict[str, float]:
    """Seconds of whole iterations of `steps` steps (the noise's parts as of the longest)."""
    noise = part["regularizer"] + part["p_of_z"]
    picture = part["decode"] + part["decode_pull"]
    recompute = steps * (part["forward"] + part["recompute_and_pull"]) + picture + noise
    store = steps * part["keep_and_pull"] + picture + noise
    published = steps * (part["published_step"] + part["decode"])
    published += part["published_decode_and_backward"] + part["published_regularizer"]
    return {
        "recompute_seconds": recompute,
        "store_seconds": store,
        "published_seconds": published,
        "ratio_recompute": published / recompute,
        "ratio_store": published / store,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few channels, print only")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    pixels = 64 if given.quick else given.pixels
    found = parts(sd15_requests(pixels, given.quick), given.repeats)
    result = {
        "command": "python benchmarks/full_size_parts.py",
        **machine(),
        "model": "SD1.5, random weights, float32",
        "pixels": pixels,
        "timed_steps": TIMED_STEPS,
        "parts_seconds": rounded(found),
        "steps": {str(steps): rounded(composed(found, steps)) for steps in STEPS},
    }
    for name, value in {**result["parts_seconds"], **result["steps"]}.items():
        print(f"{name}: {value}", flush=True)
    if given.output or not given.quick:
        write(given.output or RESULTS, result)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
