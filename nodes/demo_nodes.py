"""The node DNO Demo Model."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_bridge.demo_model import load_demo_model
from .types import CATEGORY


class DemoModel(io.ComfyNode):
    """A small bundled text-to-image model that runs on a CPU."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_DemoModel",
            display_name="DNO Demo Model",
            category=CATEGORY,
            description=(
                "A small text-to-image model that comes with this pack: 64 x 64 pixels, runs on a "
                "CPU, needs no download. It knows about 90 things in 4 drawing styles on coloured "
                'backgrounds ("cat face", "red apple on blue", "pig, flat style"). It shows the '
                "method, not image quality."
            ),
            search_aliases=["dno demo", "demo checkpoint", "tiny model", "test model"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    tooltip="The denoiser. Use latents for 64 x 64 pixels, CFG 2 to 4."
                ),
                io.Clip.Output(tooltip="The text encoder. Prompts of up to 22 words."),
                io.Vae.Output(tooltip="Turns latents into pictures and back."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())
