"""What each reward does to pictures when it is climbed far, and what a held-out judge says to it.

    python benchmarks/reward_climbs.py [--only NAME ...]

DNO Sampler at its own defaults (with the probability regularizer) on the demo model, four prompts,
more iterations than usual: 30, or 15 for the black boxes, whose gradient is probed. The demo judge
is watched, never optimized. Writes benchmarks/results/reward_climbs.json, where rewards that are
not asked for keep their numbers, docs/rewards/NAME.jpg, the first pictures above the last, and
docs/rewards/reference.jpg, what the rewards with a reference compare with.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

import torch
from checkout import ROOT, start_comfyui
from PIL import Image
from reward_scales import REFERENCE_SEED, plain_samples, shift_tolerant_lpips
from torch import Tensor

PROMPTS = ("cat face", "red apple on blue", "sunflower", "penguin")
REFERENCE = "fish"
SEED, STEPS, CFG = 11, 10, 3.0
ITERATIONS, PROBED_ITERATIONS = 30, 15
INPUTS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "brightness darkness contrast palette saturation sharpness clip_score clip_similarity "
        "colour_match jpeg_compressibility jpeg_incompressibility"
    ).split()
} | {"colour": {"colour": "#2f6fd0"}, "lpips": {"model": "alex_shift_tolerant.pth"}}
RESULTS = ROOT / "benchmarks" / "results" / "reward_climbs.json"
PICTURES = ROOT / "docs" / "rewards"
SHOWN = 128  # pixels of a picture on the page
DRAWING = ("seed", "steps", "cfg", "scheduler", "denoise")


def defaults() -> dict[str, Any]:
    """What DNO Sampler's widgets hold when it is dragged in, as far as they set the run."""
    from comfyui_dno.nodes.request import Request
    from comfyui_dno.nodes.sampler_node import Sampler

    settings = {*DRAWING, *(field.name for field in fields(Request))}
    info = Sampler.INPUT_TYPES()
    widgets = {**info["required"], **info.get("optional", {})}
    return {
        name: widget[1]["default"]
        for name, widget in widgets.items()
        if name in settings and len(widget) > 1 and "default" in widget[1]
    }


def terms_of(name: str, reference: Tensor) -> tuple[Any, Any]:
    """The reward that is climbed and the judge that watches, with what each of them needs."""
    from comfyui_dno.dno_core import Term
    from comfyui_dno.rewards import REGISTRY, Context, create
    from comfyui_dno.rewards.clip_score import DEMO_JUDGE

    inputs = dict(INPUTS[name])
    if "model" in inputs:
        inputs["model"] = next(
            str(file) for file in shift_tolerant_lpips() if file.name == inputs["model"]
        )
    spec, prompts = REGISTRY[name], Context(PROMPTS)
    context = Context(PROMPTS if spec.prompt else (), reference if spec.reference else None)
    judge = create("clip_score", model=DEMO_JUDGE)
    return Term(create(name, **inputs), context=context), Term(judge, watch=True, context=prompts)


def climb(demo: Any, terms: tuple[Any, ...], iterations: int) -> Any:
    """The trajectory of a run of DNO Sampler, one picture a prompt."""
    import nodes

    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.optimization import run
    from comfyui_dno.nodes.request import Request

    model, clip, vae = demo

    def encode(texts: Iterable[str]) -> Any:
        rows = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
        options = dict(rows[0][1])
        if isinstance(options.get("pooled_output"), Tensor):
            options["pooled_output"] = torch.cat([row[1]["pooled_output"] for row in rows])
        return [[torch.cat([row[0] for row in rows]), options]]

    chosen = {**defaults(), "seed": SEED, "steps": STEPS, "cfg": CFG, "iterations": iterations}
    drawn = {name: chosen.pop(name) for name in DRAWING}
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64, len(PROMPTS))
        drawing = KSamplerDrawing(
            model=model, positive=encode(PROMPTS), negative=encode([""] * len(PROMPTS)), **drawn
        )
        return run(
            Request(drawing=drawing, latent=latent, vae=vae, terms=terms, **chosen)
        ).trajectory


def summary(trajectory: Any, terms: tuple[Any, Any]) -> dict[str, Any]:
    """Means over the pictures: in each reward's unit, and the changes in its scales."""
    records, (reward, judge) = trajectory.records, terms

    def mean(values: Iterable[float]) -> float:
        listed = [float(value) for value in values]
        return sum(listed) / len(listed)

    def row(reward_score: float, judge_score: float) -> dict[str, float]:
        first = records[0].scores
        return {
            "score": float(f"{reward_score:.4g}"),
            "gain": round((reward_score - mean(first[0])) / reward.reward.scale, 2),
            "judge_gain": round((judge_score - mean(first[1])) / judge.reward.scale, 2),
        }

    best = [
        [records[index].scores[term][image] for image, index in enumerate(trajectory.best)]
        for term in (0, 1)
    ]
    return {
        "iterations": len(records) - 1,
        "first": row(mean(records[0].scores[0]), mean(records[0].scores[1])),
        "returned": row(mean(best[0]), mean(best[1])),
        "last": row(mean(records[-1].scores[0]), mean(records[-1].scores[1])),
        "saturated": [round(mean(records[i].saturated), 3) for i in (0, -1)],
        "returned_at": [int(index) for index in trajectory.best],
    }


def sheet(rows: Iterable[Any]) -> Image.Image:
    """Rows of pictures uint8 [B, H, W, 3], enlarged, as one picture."""
    joined = torch.cat([torch.cat(list(torch.as_tensor(row)), dim=1) for row in rows], dim=0)
    height, width = (SHOWN * side // 64 for side in joined.shape[:2])
    return Image.fromarray(joined.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=INPUTS, default=list(INPUTS))
    arguments = parser.parse_args()
    start_comfyui()
    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model
    from comfyui_dno.rewards import REGISTRY

    demo = load_demo_model()
    reference = next(plain_samples([REFERENCE], 1, REFERENCE_SEED))[1].clone()
    pixels = (reference * 255).to(torch.uint8).movedim(1, -1)
    sheet([pixels]).save(PICTURES / "reference.jpg", quality=88)
    for name in arguments.only:
        terms = terms_of(name, reference)
        probed = not terms[0].reward.differentiable
        trajectory = climb(demo, terms, PROBED_ITERATIONS if probed else ITERATIONS)
        sheet([trajectory.images[0], trajectory.images[-1]]).save(
            PICTURES / f"{name}.jpg", quality=88
        )
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        rewards = {**found.get("rewards", {}), name: summary(trajectory, terms)}
        result = {
            "command": "python benchmarks/reward_climbs.py",
            "prompts": PROMPTS,
            "reference": REFERENCE,
            "inputs": {each: inputs for each, inputs in INPUTS.items() if inputs},
            "sampler": {**defaults(), "seed": SEED, "steps": STEPS, "cfg": CFG},
            "rewards": {each: rewards[each] for each in REGISTRY if each in rewards},
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(name, rewards[name], flush=True)


if __name__ == "__main__":
    main()
