"""Reward Loader's widgets and sockets, made from what a reward says of its inputs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rewards import Input, Spec
from .reward_models import model_options


def widget(item: Input) -> Any:
    """The widget or socket for one input of a reward."""
    shared: dict[str, Any] = {"tooltip": item.tooltip, "advanced": item.advanced or None}
    if item.kind == "clip_vision":
        return io.ClipVision.Input(item.name, optional=True, tooltip=item.tooltip)
    if item.kind in ("choice", "model"):
        options = model_options(item) if item.kind == "model" else list(item.choices)
        options = options or [""]
        default = item.default if item.default in options else options[0]
        return io.Combo.Input(item.name, options=options, default=default, **shared)
    shared["default"] = item.default
    if item.kind in ("float", "int"):
        kind: Any = io.Float if item.kind == "float" else io.Int
        return kind.Input(item.name, min=item.min, max=item.max, step=item.step, **shared)
    if item.kind == "bool":
        return io.Boolean.Input(item.name, **shared)
    if item.kind == "colour":
        return io.Color.Input(item.name, **shared)
    return io.String.Input(item.name, multiline=item.kind == "text", **shared)


def option(spec: Spec) -> Any:
    """A reward with its own inputs, as one choice of Reward Loader: sockets, then widgets.

    The precision is a widget of the node: a widget that is added here would shift the node's own
    in saved workflows.
    """
    sockets: list[Any] = []
    if spec.prompt:
        sockets.append(
            io.String.Input("prompt", optional=True, force_input=True, tooltip=spec.prompt)
        )
    if spec.reference:
        sockets.append(io.Image.Input("reference", optional=True, tooltip=spec.reference))
    widgets = [widget(item) for item in spec.inputs if item.kind != "precision"]
    return io.DynamicCombo.Option(spec.name, [*sockets, *widgets])
