"""The node DNO Sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io, ui

from ..dno_core import OPTIMIZERS
from .added_inputs import added_inputs
from .optimization import run
from .report import summary
from .request import Request
from .types import CATEGORY, ESTIMATOR, REGULARIZER, REWARD, STOP, TRAJECTORY


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
            hidden=[io.Hidden.unique_id],
            inputs=[
                *_sampling_inputs(),
                *_optimization_inputs(),
                *_advanced_inputs(),
                *added_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The best iteration's latent."),
                io.Image.Output(display_name="image", tooltip="The best iteration, decoded."),
                TRAJECTORY.Output(
                    display_name="trajectory",
                    tooltip="Every iteration: for Pick Iteration, Reward Curve, Save Trajectory.",
                ),
            ],
        )

    @classmethod
    def execute(cls, latent_image: Any, reward: Any, **inputs: Any) -> io.NodeOutput:
        result = run(
            Request(latent=latent_image, terms=reward, node_id=cls.hidden.unique_id, **inputs)
        )
        shown = ui.PreviewImage(result.image, cls=cls).as_dict()
        numbers = summary(result.trajectory)
        return io.NodeOutput(
            result.latent,
            result.image,
            result.trajectory,
            ui={**shown, "dno": [numbers]},
        )


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


def _optimization_inputs() -> list[Any]:
    return [
        io.Vae.Input("vae", tooltip="Decodes every iteration, so that the reward can see it."),
        REWARD.Input("reward", tooltip="What to climb: from Reward Loader or Reward Mix."),
        io.Int.Input(
            "iterations",
            default=20,
            min=0,
            max=10000,
            tooltip="Optimizer iterations. More climb higher and take longer. 10 to 50; 0 "
            "gives KSampler's picture, scored.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.03,
            min=0.0,
            max=10.0,
            step=0.001,
            round=0.00001,
            tooltip="How far the noise moves in an iteration. Raise it if the reward climbs too "
            "slowly, lower it if P(z) falls or the curve jumps. 0.01 to 0.05 for adam.",
        ),
        io.Float.Input(
            "eta",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of fresh noise in every step. 1 (SDE) optimizes the noise of all "
            "steps and climbs best; 0 (ODE) only the starting noise.",
        ),
        REGULARIZER.Input(
            "regularizer",
            optional=True,
            tooltip="Keeps the noise Gaussian, so that the picture stays one the model could "
            "draw. Unconnected: the paper's, at its recommended strength.",
        ),
        ESTIMATOR.Input(
            "estimator",
            optional=True,
            tooltip="ZO Gradient Estimator: how the way up is found. Unconnected: auto, the "
            "gradient for rewards that have one and probes for those that have none.",
        ),
        TRAJECTORY.Input(
            "resume",
            optional=True,
            tooltip="A run to go on with, from Load Trajectory or another DNO Sampler: same "
            "model, prompts, latent, reward and seed. iterations counts all of them, those "
            "already done included; time_limit counts only the new ones.",
        ),
        STOP.Input(
            "stop",
            optional=True,
            tooltip="Stop Rules: ends the run early when P(z) leaves the typical range, a watched "
            "reward falls, the climb stalls or a score is reached. Unconnected: it takes all "
            "iterations.",
        ),
    ]


def _advanced_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "optimizer",
            options=list(OPTIMIZERS),
            default="adam",
            advanced=True,
            tooltip="adam needs little tuning. sgd (Nesterov, momentum 0.9) follows the "
            "gradient's size; its learning rate is some 100 times higher. unit: every step has the "
            "length of the learning rate, 0.5 to 4.",
        ),
        io.Float.Input(
            "gradient_clip",
            default=1.0,
            min=0.0,
            max=1000.0,
            step=0.1,
            advanced=True,
            tooltip="Largest gradient norm of an image; 0 is no clip. Matters for sgd, hardly "
            "for adam.",
        ),
        io.Boolean.Input(
            "check_gradient",
            default=True,
            advanced=True,
            tooltip="Compare the first gradient with a measured slope (two to ten more runs) and "
            "stop if a custom node has made it grossly wrong. Switch off only if you know why.",
        ),
        io.Float.Input(
            "time_limit",
            default=0.0,
            min=0.0,
            max=1_000_000.0,
            step=1.0,
            advanced=True,
            tooltip="Stop after the iteration in which this many seconds have passed; 0 is no "
            "limit.",
        ),
        io.Int.Input(
            "memory_mb",
            default=512,
            min=16,
            max=1_000_000,
            advanced=True,
            tooltip="Main memory for the pictures of all iterations; beyond it they go to "
            "ComfyUI's temp folder.",
        ),
    ]
