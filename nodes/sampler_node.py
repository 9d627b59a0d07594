"""The node DNO Sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from .added_inputs import added_inputs
from .drawing import KSamplerDrawing
from .presets import with_preset
from .request import Request
from .sampler_inputs import (
    advanced_inputs,
    hidden_inputs,
    optimization_inputs,
    outputs,
    run_node,
)
from .types import CATEGORY


class Sampler(io.ComfyNode):
    """KSampler's place in the graph; optimizes the noise so that the image climbs the reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_Sampler",
            display_name="DNO Sampler",
            category=CATEGORY,
            description=(
                "Draws the picture KSampler draws (euler_ancestral), then optimizes its noise so "
                "that the picture climbs the reward. Returns the best iteration."
            ),
            search_aliases=["direct noise optimization", "reward", "ksampler", "align", "dno"],
            hidden=hidden_inputs(),
            inputs=[
                *_sampling_inputs(),
                *optimization_inputs(),
                *advanced_inputs(),
                *added_inputs(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        seed: int,
        steps: int,
        cfg: float,
        scheduler: str,
        denoise: float,
        latent_image: Any,
        reward: Any,
        **inputs: Any,
    ) -> io.NodeOutput:
        drawing = KSamplerDrawing(model, positive, negative, seed, steps, cfg, scheduler, denoise)
        request = Request(
            drawing=drawing,
            latent=latent_image,
            terms=reward,
            node_id=cls.hidden.unique_id,
            **with_preset(inputs),
        )
        return run_node(cls, request)


def _sampling_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="Any image model. LoRA, ControlNet and patches stay."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the picture to start from: the one KSampler draws with it.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=1000,
            tooltip="Sampling steps. An iteration's time grows with them; memory does not. "
            "10 to 50; few-step models 1 to 8.",
        ),
        io.Float.Input(
            "cfg",
            default=5.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance scale. High values leave the reward less room. 3 to 7; 1 is "
            "twice as fast.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default="normal",
            tooltip="How noise levels fall from step to step, as in KSampler.",
        ),
        io.Conditioning.Input("positive", tooltip="What the picture should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input(
            "latent_image",
            tooltip="Empty latent, or an encoded image for img2img. A noise mask limits the "
            "change to its region.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Below 1 the structure of the given latent is kept, as in KSampler.",
        ),
    ]
