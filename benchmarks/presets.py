"""What each preset of DNO Sampler gains on the demo model, and what it costs.

    python benchmarks/presets.py [--output benchmarks/results]

Eight prompts as one batch, 20 steps, CLIPScore climbed and the held-out judge watching, in float32
on the CPU; no time limit, since it cuts differently on every machine. Gains are of the picture that
is returned over the one that KSampler draws, in units of each reward's spread. `forwards` is the
work: a drawing counts one, a gradient three more. Writes presets.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT, start_comfyui

PROMPTS = (
    "cat face", "red apple on blue", "pig, flat style", "sunflower",
    "blue heart", "hamburger", "green apple on pink", "penguin",
)  # fmt: skip
SEED, STEPS, CFG = 11, 20, 3.0


def encode(clip: Any, prompts: tuple[str, ...]) -> Any:
    """One CONDITIONING whose rows are the prompts."""
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in prompts]
    options = dict(encoded[0][1])
    if isinstance(options.get("pooled_output"), torch.Tensor):
        options["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in encoded])
    return [[torch.cat([entry[0] for entry in encoded]), options]]


def terms() -> tuple[Any, ...]:
    from comfyui_dno import rewards
    from comfyui_dno.dno_core import Term
    from comfyui_dno.rewards.clip_score import DEMO_JUDGE, DEMO_REWARD

    context = rewards.Context(prompts=PROMPTS)
    reward, judge = (rewards.create("clip_score", model=m) for m in (DEMO_REWARD, DEMO_JUDGE))
    return Term(reward, context=context), Term(judge, watch=True, context=context)


def measure(preset: str, demo: Any) -> dict[str, Any]:
    import nodes

    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.optimization import planned_cost, run
    from comfyui_dno.nodes.presets import with_preset
    from comfyui_dno.nodes.request import Request

    model, clip, vae = demo
    climbed = terms()
    settings = {**with_preset({"preset": preset}), "time_limit": 0.0}
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64, len(PROMPTS))
        blank = encode(clip, ("",) * len(PROMPTS))
        drawing = KSamplerDrawing(
            model, encode(clip, PROMPTS), blank, SEED, STEPS, CFG, "normal", 1.0
        )
        request = Request(drawing=drawing, latent=latent, vae=vae, terms=climbed, **settings)
        started = time.perf_counter()
        trajectory = run(request).trajectory
        seconds = time.perf_counter() - started
        plain = replace(request, iterations=0, screen_seeds=1)
        first = run(plain).trajectory.records[0]
    chosen = [trajectory.records[best] for best in trajectory.best]
    found: dict[str, Any] = {}
    for row, name in enumerate(("reward", "judge")):
        scale = climbed[row].reward.scale
        gains = [(r.scores[row][b] - first.scores[row][b]) / scale for b, r in enumerate(chosen)]
        found[name] = round(sum(gains) / len(gains), 2)
    lowest = min(100 * record.quantile[b] for b, record in enumerate(chosen))
    return {
        **found,
        "lowest_percentile": round(lowest, 1),
        "seconds": round(seconds, 1),
        "forwards": round(planned_cost(request, request.iterations, STEPS)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    start_comfyui()
    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model
    from comfyui_dno.nodes.presets import PRESETS

    demo = load_demo_model()
    found = {}
    for preset in PRESETS:
        found[preset] = measure(preset, demo)
        print(preset, found[preset], flush=True)
    result = {
        "command": "python benchmarks/presets.py",
        "prompts": PROMPTS,
        "seed": SEED,
        "steps": STEPS,
        "cfg": CFG,
        "presets": found,
    }
    text = json.dumps(result, indent=2) + "\n"
    (arguments.output / "presets.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
