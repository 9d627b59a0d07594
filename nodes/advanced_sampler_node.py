"""The node DNO Sampler (Advanced)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .added_inputs import added_inputs
from .drawing import GuiderDrawing
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


class SamplerAdvanced(io.ComfyNode):
    """SamplerCustomAdvanced's place in the graph: any guider, any schedule, any noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_SamplerAdvanced",
            display_name="DNO Sampler (Advanced)",
            category=CATEGORY,
            description=(
                "DNO Sampler for graphs that compose guider, sigmas and noise. Starts from what "
                "SamplerCustomAdvanced draws with euler_ancestral. Returns the best iteration."
            ),
            search_aliases=[
                "direct noise optimization",
                "reward",
                "custom sampler",
                "guider",
                "dno",
            ],
            hidden=hidden_inputs(),
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip="Random Noise: the seed of the picture to start from. Disable Noise "
                    "leaves nothing to optimize.",
                ),
                io.Guider.Input(
                    "guider",
                    tooltip="Model, prompts and guidance: CFG Guider, Basic Guider, Dual CFG "
                    "Guider or one of another pack. LoRA, ControlNet and patches stay.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels, falling to 0: from Basic Scheduler (denoise below "
                    "1 for img2img), Align Your Steps, or the low half of Split Sigmas. 10 to 50 "
                    "steps; few-step models 1 to 8.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty latent, or an encoded image for img2img. A noise mask limits "
                    "the change to its region.",
                ),
                *optimization_inputs(),
                *advanced_inputs(),
                *added_inputs(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sigmas: Any,
        latent_image: Any,
        reward: Any,
        **inputs: Any,
    ) -> io.NodeOutput:
        request = Request(
            drawing=GuiderDrawing(guider, sigmas, noise),
            latent=latent_image,
            terms=reward,
            node_id=cls.hidden.unique_id,
            **with_preset(inputs),
        )
        return run_node(cls, request)
