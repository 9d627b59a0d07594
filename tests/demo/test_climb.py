"""The method on the demo model, at DNO Sampler's defaults: the reward climbs, the lights tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.dno_core import TYPICAL, NoRegularizer, Term, Trajectory

PROMPTS = (
    "cat face",
    "red apple on blue",
    "pig, flat style",
    "sunflower",
    "blue heart",
    "hamburger",
    "green apple on pink",
    "penguin",
)
SEED = 11

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(comfy: Any) -> Any:
    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model

    return load_demo_model()


def encode(clip: Any, prompts: tuple[str, ...]) -> Any:
    """One CONDITIONING whose rows are the prompts: every image of the batch has its own."""
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in prompts]
    options = dict(encoded[0][1])
    if isinstance(options.get("pooled_output"), torch.Tensor):
        options["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in encoded])
    return [[torch.cat([entry[0] for entry in encoded]), options]]


def defaults() -> dict[str, Any]:
    """What the node's widgets hold when it is dragged in."""
    from comfyui_dno.nodes.sampler_node import Sampler

    info = Sampler.INPUT_TYPES()
    widgets = {**info["required"], **info.get("optional", {})}
    return {
        name: widget[1]["default"]
        for name, widget in widgets.items()
        if len(widget) > 1 and "default" in widget[1]
    }


def climb(demo: Any, term: Term, prompts: tuple[str, ...] = PROMPTS, **changed: Any) -> Trajectory:
    """A run of DNO Sampler on the demo model: its own defaults, the demo model's steps and cfg."""
    import nodes

    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.optimization import run
    from comfyui_dno.nodes.presets import with_preset
    from comfyui_dno.nodes.request import Request

    model, clip, vae = demo
    settings = with_preset({**defaults(), "seed": SEED, "steps": 10, "cfg": 3.0, **changed})
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64, len(prompts))
        parts = {
            "model": model,
            "positive": encode(clip, prompts),
            "negative": encode(clip, ("",) * len(prompts)),
        }
        for name in ("seed", "steps", "cfg", "scheduler", "denoise"):
            parts[name] = settings.pop(name)
        request = Request(
            drawing=KSamplerDrawing(**parts),
            latent=latent,
            vae=vae,
            terms=(term,),
            **settings,
        )
        return run(request).trajectory


def reward_term(name: str, prompts: tuple[str, ...] = PROMPTS) -> Term:
    reward = rewards.create(name)
    needs_prompt = bool(rewards.REGISTRY[name].prompt)
    context = rewards.Context(prompts=prompts) if needs_prompt else rewards.Context()
    return Term(reward, context=context)


@pytest.mark.parametrize("name", ["darkness", "brightness", "clip_score"])
def test_the_reward_climbs_and_no_picture_of_untypical_noise_is_returned(
    demo: Any, name: str
) -> None:
    """8 prompts: on average at least one standard deviation of plain samples above iteration 0."""
    term = reward_term(name)
    trajectory = climb(demo, term)
    first = trajectory.records[0]
    gains = [
        (trajectory.records[best].scores[0][image] - first.scores[0][image]) / term.reward.scale
        for image, best in enumerate(trajectory.best)
    ]
    lowest = min(trajectory.records[best].quantile[i] for i, best in enumerate(trajectory.best))
    print(f"\n{name}: gain {sum(gains) / len(gains):.2f} scales, each {gains}, lowest {lowest}")
    assert sum(gains) / len(gains) >= 1.0
    assert lowest > TYPICAL, "no picture is returned whose noise is untypical"
    last = trajectory.records[-1].quantile
    outside = sum(quantile <= TYPICAL for quantile in last)
    print(f"outside the typical range at the end: {outside} of {len(last)}")
    left = any(min(record.quantile) <= TYPICAL for record in trajectory.records[1:])
    assert left == any("P(z) has left" in warning for warning in trajectory.warnings)


def test_without_regularizer_and_with_a_high_rate_the_warning_lights(demo: Any) -> None:
    prompts = PROMPTS[:2]
    trajectory = climb(
        demo,
        reward_term("darkness", prompts),
        prompts,
        regularizer=NoRegularizer(),
        learning_rate=0.1,
        iterations=5,
    )
    assert any("P(z) has left the typical range" in warning for warning in trajectory.warnings)
    assert min(trajectory.records[-1].quantile) <= 0.01
    chosen = [trajectory.records[b].quantile[i] for i, b in enumerate(trajectory.best) if b]
    assert all(quantile > 0.01 for quantile in chosen), "the best is never an untypical iteration"
