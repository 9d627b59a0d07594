"""Measure every reward's `scale`: the standard deviation of its score over plain samples.

    python benchmarks/reward_scales.py [--samples 4] [--output benchmarks/results]
    python benchmarks/reward_scales.py --reward pickscore --inputs '{"model": "FOLDER"}' \\
        --pictures FOLDER [--prompts FILE] [--reference PICTURE] [--device cuda]

The samples are the demo model's, drawn by ComfyUI's own sampler: the 60 listed things, prompted by
name alone (the noise chooses background and style), in float32 on the CPU. Writes
reward_scales.json; the SCALE constants in rewards/ are the numbers found there.

With `--pictures` one reward is measured on pictures of your own, plain samples of your checkpoint
for example, and the spread is only printed. A prompts file has a line for each picture: its file
name, a tab, its prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT, map_pack, start_comfyui
from picture_scales import report
from torch import Tensor

STEPS, CFG, SAMPLER, SCHEDULER = 10, 3.0, "euler_ancestral", "normal"
COLOURS = "#000000 #ffffff #ff0000 #00ff00 #0000ff #ffff00 #ff00ff #00ffff".split()
PALETTES = (
    "#e63946 #f1faee #457b9d #1d3557",
    "#ff0000 #ffff00 #0000ff",
    "#264653 #2a9d8f #e9c46a #f4a261 #e76f51",
    "#ffffff #aaaaaa #555555 #000000",
)
REFERENCES, REFERENCE_SEED = 8, 500  # plain samples of as many things, that are not scored


def things() -> list[str]:
    """The names of the 60 things on which the demo model's recognisability is measured."""
    from comfyui_dno.demo.training import vocabulary

    return [vocabulary.name_of(thing) for thing in vocabulary.LISTED]


def plain_samples(
    prompts: list[str], seeds: int, first_seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield (prompt, images [seeds, 3, H, W]) for every prompt, as KSampler would draw them."""
    import comfy.sample

    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model

    model, clip, vae = load_demo_model()

    def encode(text: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    negative = encode("")
    for index, prompt in enumerate(prompts):
        latent = torch.zeros(seeds, 8, 16, 16)
        seed = first_seed + 1000 * index
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


def reference_prompts(prompts: list[str]) -> list[str]:
    """The things whose plain samples are reference pictures, spread over the list."""
    return prompts[:: max(1, len(prompts) // REFERENCES)][:REFERENCES]


class Measured(NamedTuple):
    """A reward, and the picture that it compares with if it does."""

    reward: Any
    reference: Tensor | None = None


def measured_rewards(references: list[Tensor]) -> dict[str, list[Measured]]:
    """The rewards under the name their scale is recorded by.

    colour stands for 8 colours, palette for 4 palettes, and what compares with a reference for
    several of them; the scale is the mean of theirs.
    """
    from comfyui_dno.rewards import create
    from comfyui_dno.rewards.clip_score import DEMO_FOLDERS
    from comfyui_dno.rewards.jpeg import SCALES

    rewards: dict[str, list[Measured]] = {
        name: [Measured(create(name))]
        for name in ("brightness", "darkness", "contrast", "saturation", "sharpness")
    }
    for quality in SCALES:
        rewards[f"jpeg_incompressibility ({quality})"] = [
            Measured(create("jpeg_incompressibility", quality=quality))
        ]
    rewards["colour"] = [Measured(create("colour", colour=colour)) for colour in COLOURS]
    rewards["palette"] = [Measured(create("palette", colours=text)) for text in PALETTES]
    for model in DEMO_FOLDERS:
        rewards[f"clip_score ({model})"] = [Measured(create("clip_score", model=model))]
    compared = [create("colour_match")]
    compared += [create("clip_similarity", model=model) for model in DEMO_FOLDERS]
    compared += [create("lpips", model=str(file)) for file in shift_tolerant_lpips()]
    for reward in compared:
        rewards[reward.name] = [Measured(reward, reference) for reference in references]
    return rewards


def shift_tolerant_lpips() -> list[Path]:
    """The networks that the package stlpips-pytorch ships: the LPIPS that need no download."""
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or spec.origin is None:
        sys.exit("Install the package stlpips-pytorch first: LPIPS is measured with its networks.")
    return sorted((Path(spec.origin).parent / "weights" / "vST0.0").glob("*_shift_tolerant.pth"))


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

    drawn = plain_samples(reference_prompts(prompts), 1, REFERENCE_SEED)
    rewards = measured_rewards([image for _, image in drawn])
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    for done, (prompt, images) in enumerate(plain_samples(prompts, seeds), 1):
        for name, group in rewards.items():
            found = [
                reward.score(images, Context((prompt,), reference)) for reward, reference in group
            ]
            scores[name].append(torch.stack(found))
        print(f"\r{done}/{len(prompts)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: summary(torch.stack(found, dim=1)) for name, found in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4, help="samples a prompt (default 4)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--reward", help="measure this one, on --pictures")
    parser.add_argument("--inputs", type=json.loads, default={}, help="its inputs, as JSON")
    parser.add_argument("--pictures", type=Path, help="folder of png, jpg or webp files")
    parser.add_argument("--prompts", type=Path, help="file of lines: file name, tab, prompt")
    parser.add_argument("--reference", type=Path, help="picture that the reward compares with")
    parser.add_argument("--device", default="cpu", help="where the reward runs (default cpu)")
    arguments = parser.parse_args()
    if bool(arguments.reward) != bool(arguments.pictures):
        parser.error("--reward and --pictures go together")
    if arguments.reward:
        map_pack()
        report(
            arguments.reward,
            arguments.inputs,
            arguments.pictures,
            arguments.prompts,
            arguments.reference,
            arguments.device,
        )
        return
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
        "palettes": PALETTES,
        "references": reference_prompts(prompts),
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
