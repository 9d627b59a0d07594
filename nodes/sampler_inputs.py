"""What both DNO Samplers have in common: the optimization's inputs, and the outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ..dno_core import OPTIMIZERS
from ..rewards.heartbeat import beating
from .live.metadata import CHANGES, record_changes, workflow_id
from .optimization import run
from .report import summary
from .request import Request
from .types import ESTIMATOR, REGULARIZER, REWARD, STOP, TRAJECTORY


def run_node(cls: Any, request: Request) -> io.NodeOutput:
    """Run the request for a node of class `cls`; its outputs, and what the node shows."""
    with beating(comfy.model_management.throw_exception_if_processing_interrupted):
        result = run(replace(request, workflow=workflow_id(cls.hidden.extra_pnginfo)))
    changes = result.trajectory.meta.get("changes", "")
    if changes and request.node_id is not None:
        hidden = cls.hidden
        position = widget_position(cls, CHANGES)
        record_changes(hidden.prompt, hidden.extra_pnginfo, request.node_id, changes, position)
    shown = ui.PreviewImage(result.image, cls=cls).as_dict()
    return io.NodeOutput(
        result.latent,
        result.image,
        result.trajectory,
        ui={**shown, "dno": [summary(result.trajectory)]},
    )


def hidden_inputs() -> list[Any]:
    return [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]


def widget_position(cls: Any, name: str) -> int:
    """Where a widget stands among the values of a saved workflow's node."""
    position = 0
    for item in cls.define_schema().inputs:
        if item.id == name:
            break
        if isinstance(item, io.WidgetInput):
            position += 2 if getattr(item, "control_after_generate", False) else 1
    return position


def outputs() -> list[Any]:
    return [
        io.Latent.Output(display_name="latent", tooltip="The best iteration's latent."),
        io.Image.Output(display_name="image", tooltip="The best iteration, decoded."),
        TRAJECTORY.Output(
            display_name="trajectory",
            tooltip="Every iteration: for Pick Iteration, Reward Curve, Save Trajectory.",
        ),
    ]


def optimization_inputs() -> list[Any]:
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
            step=0.0005,  # the page keeps as many digits as the step has
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


def advanced_inputs() -> list[Any]:
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
