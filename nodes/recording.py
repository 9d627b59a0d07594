"""Pictures that are saved from a run without sampling again carry what was changed in it."""

from __future__ import annotations

from typing import Any

from ..dno_core import Trajectory
from .advanced_sampler_node import SamplerAdvanced
from .live.metadata import CHANGES, record_changes
from .sampler_inputs import widget_position
from .sampler_node import Sampler

SAMPLERS = {"DNO_Sampler": Sampler, "DNO_SamplerAdvanced": SamplerAdvanced}


def record_run(hidden: Any, trajectory: Trajectory) -> None:
    """Write a run's changes by hand into this prompt's metadata, on the sampler it comes from.

    `hidden`: of a node whose input `trajectory` is wired to that sampler; where it comes from
    another node, nothing is written. The sampler itself writes only when it runs.
    """
    prompt, changes = hidden.prompt or {}, trajectory.meta.get(CHANGES, "")
    source = prompt.get(hidden.unique_id, {}).get("inputs", {}).get("trajectory")
    if not changes or not isinstance(source, list):
        return
    sampler = SAMPLERS.get(prompt.get(source[0], {}).get("class_type"))
    if sampler is not None:
        position = widget_position(sampler, CHANGES)
        record_changes(prompt, hidden.extra_pnginfo, source[0], changes, position)
