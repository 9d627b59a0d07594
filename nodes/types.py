"""The custom types that travel between the pack's nodes."""

from __future__ import annotations

from comfy_api.latest import io

REWARD = io.Custom("DNO_REWARD")
REGULARIZER = io.Custom("DNO_REGULARIZER")
TRAJECTORY = io.Custom("DNO_TRAJECTORY")
STOP = io.Custom("DNO_STOP")
ESTIMATOR = io.Custom("DNO_GRADIENT_ESTIMATOR")
CATEGORY = "sampling/DNO"
