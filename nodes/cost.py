"""What a run costs, in plain drawings, counted before it is begun."""

from __future__ import annotations

from ..dno_core import late_begin
from ..dno_core.noise_map.sampler import kept_steps
from .comfy_bridge.sampling import BACKWARD_COST, FORWARD_COST
from .request import Request
from .resume import checks_gradient
from .seeds import screened


def planned_cost(request: Request, iterations: int, steps: int) -> float:
    """A run in plain drawings of `steps` steps: screening, iterations with their probes and sweeps,
    the gradient check, the redraw."""
    estimator, terms, mode = request.gradient_estimator, request.terms, request.mode
    taken, begin = request.loop_steps(steps), late_begin(steps)
    full_from, late_from = request.full_from(steps), request.late_from(steps)
    first = request.iterations - iterations
    pulls, probes = estimator.pulls(terms), estimator.runs(terms)

    def is_late(index: int) -> bool:
        return late_from is not None and index >= late_from

    def count(index: int) -> int:
        return steps if full_from is not None and index >= full_from else taken

    def drawing(index: int) -> float:
        goes_on = is_late(index) and index > max(first, late_from or 0)
        return (count(index) - (begin if goes_on else 0)) * FORWARD_COST

    def gradient(index: int) -> float:
        pulled = kept_steps(count(index), mode, steps, begin + 1 if is_late(index) else 0)
        return count(index) * FORWARD_COST * probes + pulls * len(pulled) * BACKWARD_COST

    total = taken * FORWARD_COST * screened(request)
    total += sum(map(drawing, range(first, request.iterations + 1)))
    total += sum(map(gradient, range(first, request.iterations)))
    checked = checks_gradient(request) and iterations > 0 and estimator.exact(terms)
    if checked and request.differentiates_denoiser:
        left = begin if is_late(first) else 0
        total += 2 * (count(first) - left) * FORWARD_COST
        if mode.biased(count(first)):
            total += (count(first) - (left + 1 if left else 0)) * BACKWARD_COST
    if taken < steps:
        first_is_drawn, winner_is_drawn = full_from == 0, full_from is not None
        total += ((not first_is_drawn) + (not winner_is_drawn)) * steps * FORWARD_COST
    return total / steps
