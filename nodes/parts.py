"""The parts of a run: in few steps, in all of them, with the noise of the late ones alone."""

from __future__ import annotations

from dataclasses import replace

from ..dno_core import LateMap, Part, Problem, late_begin, noise_count
from .comfy_bridge.sampling import ComfyMap
from .request import Request


def parts_of(request: Request, problem: Problem, noise_map: ComfyMap) -> tuple[Part, ...]:
    """The parts after the first, which is the `problem`; `noise_map` takes all steps."""
    steps = len(noise_map.steps)
    full_from, late_from = request.full_from(steps), request.late_from(steps)
    parts = []
    if full_from is not None and full_from != late_from:
        parts.append(Part(full_from, replace(problem, noise_map=noise_map)))
    if late_from is not None:
        late = LateMap(noise_map, late_begin(steps))
        held = late.held if late.held < noise_count(noise_map.steps) else 0
        parts.append(Part(late_from, replace(problem, noise_map=late if held else noise_map), held))
    return tuple(parts)


def parts_lines(request: Request, steps: int) -> list[str]:
    """What the forecast says of them."""
    full_from, late_from = request.full_from(steps), request.late_from(steps)
    lines = []
    if full_from is not None and full_from != late_from:
        lines.append(f"from iteration {full_from} on in all {steps} steps")
    if late_from is not None:
        late = steps - late_begin(steps)
        lines.append(f"from iteration {late_from} on only the noise of the last {late} steps")
    return lines
