"""A checkpoint's workflow, set to run on the demo model: for thumbnails and tests.

Works on the API form, and changes nothing but what the demo model needs.
"""

from __future__ import annotations

import copy
from typing import Any

Workflow = dict[str, Any]
SIDE = 64
SIZED = ("EmptyLatentImage", "SolidMask", "MaskComposite")
LENGTHS = ("width", "height", "x", "y")
CFG = 3.0
STEPS, ITERATIONS = 10, 20
RATES = {"adam": 0.015, "sgd": 1.0}
DEMO_REWARD, DEMO_JUDGE = "demo reward", "demo judge (held out)"


def needs_checkpoint(workflow: Workflow) -> bool:
    return any(data["class_type"] == "CheckpointLoaderSimple" for data in workflow.values())


def on_demo_model(workflow: Workflow) -> Workflow:
    """A copy with the demo model in the checkpoint's place, all sizes made to fit 64 pixels."""
    changed = copy.deepcopy(workflow)
    sized = [data["inputs"] for data in changed.values() if data["class_type"] in SIZED]
    side = max(inputs.get("width", 0) for inputs in sized)
    for inputs in sized:
        for name in LENGTHS:
            if name in inputs:
                inputs[name] = inputs[name] * SIDE // side
    for data in changed.values():
        if data["class_type"] == "CheckpointLoaderSimple":
            data |= {"class_type": "DNO_DemoModel", "inputs": {}}
        elif data["class_type"] == "ImageScaleToTotalPixels":
            kept = {name: data["inputs"][name] for name in ("image", "upscale_method")}
            fixed = {"width": SIDE, "height": SIDE, "crop": "disabled"}
            data |= {"class_type": "ImageScale", "inputs": {**kept, **fixed}}
        if "cfg" in data["inputs"]:
            data["inputs"]["cfg"] = CFG
    return changed


def with_demo_rewards(workflow: Workflow, prompt: str, seed: int) -> Workflow:
    """A copy that climbs and watches the demo's image-text models, at a pace that suits them."""
    changed = copy.deepcopy(workflow)
    text = next(
        [key, 0] for key, data in changed.items() if data["class_type"].startswith("PrimitiveStr")
    )
    for data in changed.values():
        kind, inputs = data["class_type"], data["inputs"]
        if kind == "DNO_RewardLoader":
            kept = {name: value for name, value in inputs.items() if not name.startswith("reward")}
            model = DEMO_JUDGE if inputs["watch_only"] else DEMO_REWARD
            chosen = {"reward": "clip_score", "reward.model": model, "reward.template": "auto"}
            data["inputs"] = {**chosen, "reward.prompt": text, **kept}
        elif kind.startswith("PrimitiveStr"):
            inputs["value"] = prompt
        elif kind == "CLIPTextEncode" and isinstance(inputs["text"], str):
            inputs["text"] = ""
        inputs |= {name: seed for name in ("seed", "noise_seed") if name in inputs}
        if "steps" in inputs:
            inputs["steps"] = STEPS
        if "iterations" in inputs:
            inputs["iterations"] = min(inputs["iterations"], ITERATIONS)
        if inputs.get("optimizer") in RATES and "estimator" not in inputs:
            inputs["learning_rate"] = min(inputs["learning_rate"], RATES[inputs["optimizer"]])
    return changed
