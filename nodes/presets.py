"""Presets: settings that go together, as the experiments on the demo model recommend them.

docs/experiments/gradient_modes.md and optimizers.md for the gradient's three, black_box.md for the
one without; benchmarks/presets.py measures what each gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..dno_core import ZoSgd

CUSTOM = "custom"
LOW_VRAM = "low VRAM"

_CLIMB = {
    "optimizer": "adam",
    "warmup": 4,
    "decay": "constant",
    "screen_seeds": 1,
    "gradient_mode": "spread k",
    "gradient_steps": 5,
    "optimize_steps": 0,
    "finish_iterations": 0,
    "late_iterations": 0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {
        **_CLIMB,
        "iterations": 12,
        "learning_rate": 0.03,
        "late_iterations": 7,
        "time_limit": 60.0,
    },
    "balanced": {
        **_CLIMB,
        "iterations": 30,
        "learning_rate": 0.03,
        "late_iterations": 25,
        "time_limit": 180.0,
    },
    "strong": {
        **_CLIMB,
        "iterations": 60,
        "learning_rate": 0.015,
        "late_iterations": 40,
        "gradient_steps": 10,
        "time_limit": 600.0,
    },
    LOW_VRAM: {
        **_CLIMB,
        "iterations": 10,
        "learning_rate": 0.06,
        "warmup": 0,
        "time_limit": 300.0,
        "screen_seeds": 32,
    },
}
"""Values of widgets by preset; what a preset does not name stays as the widget says."""


def preset_input() -> Any:
    """The widget, with all presets' values for the page, which shows them on the other widgets."""
    return io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip="Sets iterations, learning rate, gradient, time limit and seeds to values that go "
        "together: fast ends after the iteration in which one minute has passed, balanced three, "
        "strong ten. "
        "low VRAM needs no more memory than plain sampling: it starts from the best of 32 seeds "
        "and probes instead of differentiating, which gains less. custom: the widgets as they are.",
        extra_dict={"dno_presets": PRESETS},
    )


def with_preset(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a sampler node with those that its preset sets, and without `preset` itself.

    A connected estimator stays. Raises ValueError for a preset that does not exist.
    """
    values = dict(inputs)
    name = values.pop("preset", CUSTOM)
    if name == CUSTOM:
        return values
    if name not in PRESETS:
        raise ValueError(
            f"DNO Sampler knows no preset {name!r}. Use one of {', '.join([CUSTOM, *PRESETS])}."
        )
    values |= PRESETS[name]
    if name == LOW_VRAM and values.get("estimator") is None:
        values["estimator"] = ZoSgd(probe_batch=1)
    return values
