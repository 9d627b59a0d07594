"""Measure every reward's `scale`: the standard deviation of its score over plain samples.

    python benchmarks/reward_scales.py [--samples 4] [--output benchmarks/results]

The samples are the demo model's, drawn by ComfyUI's own sampler: the 60 listed things, prompted by
name alone (the noise chooses background and style), in float32 on the CPU. Writes
reward_scales.json; the SCALE constants in rewards/ are the numbers found there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT, start_comfyui
from torch import Tensor

STEPS, CFG, SAMPLER, SCHEDULER = 10, 3.0, "euler_ancestral", "normal"
COLOURS = "#000000 #ffffff #ff0000 #00ff00 #0000ff #ffff00 #ff00ff #00ffff".split()


def things() -> list[str]:
    """The names of the 60 things on which the demo model's recognisability is measured."""
    from comfyui_dno.demo.training import vocabulary

    return [vocabulary.name_of(thing) for thing in vocabulary.LISTED]


def plain_samples(prompts: list[str], seeds: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (prompt, images [seeds, 3, H, W]) for every prompt, as KSampler would draw them."""
    import comfy.sample

    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model

    model, clip, vae = load_demo_model()

    def encode(text: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    negative = encode("")
    for index, prompt in enumerate(prompts):
        latent = torch.zeros(seeds, 8, 16, 16)
        seed = 1000 * index
        x = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            encode(prompt),
            negative,
            latent,
            seed=seed,
            disable_pbar=True,
        )
        yield prompt, vae.decode(x).permute(0, 3, 1, 2)[:, :3].clamp(0, 1).float()


def measured_rewards() -> dict[str, list[Any]]:
    """The rewards under the name their scale is recorded by; colour stands for 8 colours."""
    from comfyui_dno.rewards import create
    from comfyui_dno.rewards.clip_score import DEMO_FOLDERS
    from comfyui_dno.rewards.jpeg import SCALES

    rewards: dict[str, list[Any]] = {
        name: [create(name)] for name in ("brightness", "darkness", "contrast")
    }
    for quality in SCALES:
        rewards[f"jpeg_incompressibility ({quality})"] = [
            create("jpeg_incompressibility", quality=quality)
        ]
    rewards["colour"] = [create("colour", colour=colour) for colour in COLOURS]
    for model in DEMO_FOLDERS:
        rewards[f"clip_score ({model})"] = [create("clip_score", model=model)]
    return rewards


def summary(scores: Tensor) -> dict[str, float]:
    """Of scores [rewards, prompts, seeds]: pooled spread, spread within a prompt, mean, range."""
    pooled = scores.flatten(1)
    return {
        "scale": round(pooled.std(dim=1).mean().item(), 4),
        "within_prompt": round(scores.var(dim=2).mean(dim=1).sqrt().mean().item(), 4),
        "mean": round(pooled.mean().item(), 4),
        "least": round(pooled.min().item(), 4),
        "greatest": round(pooled.max().item(), 4),
    }


@torch.inference_mode()
def measure(prompts: list[str], seeds: int) -> dict[str, dict[str, float]]:
    from comfyui_dno.rewards import Context

    rewards = measured_rewards()
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    for done, (prompt, images) in enumerate(plain_samples(prompts, seeds), 1):
        for name, group in rewards.items():
            context = Context(prompts=(prompt,))
            scores[name].append(torch.stack([r.score(images, context) for r in group]))
        print(f"\r{done}/{len(prompts)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: summary(torch.stack(found, dim=1)) for name, found in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4, help="samples a prompt (default 4)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    start_comfyui()
    prompts, started = things(), time.perf_counter()
    rewards = measure(prompts, arguments.samples)
    result = {
        "command": f"python benchmarks/reward_scales.py --samples {arguments.samples}",
        "model": "demo/model.safetensors",
        "model_sha256": hashlib.sha256((ROOT / "demo/model.safetensors").read_bytes()).hexdigest(),
        "sampling": {"sampler": SAMPLER, "scheduler": SCHEDULER, "steps": STEPS, "cfg": CFG},
        "prompts": prompts,
        "samples": len(prompts) * arguments.samples,
        "colours": COLOURS,
        "seconds": round(time.perf_counter() - started, 1),
        "rewards": rewards,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    (arguments.output / "reward_scales.json").write_text(text, encoding="utf-8")
    for name, found in rewards.items():
        print(f"{name:36} scale {found['scale']:.4f}  within a prompt {found['within_prompt']:.4f}")


if __name__ == "__main__":
    main()
