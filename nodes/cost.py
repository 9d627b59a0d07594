"""What a run costs, in plain drawings, counted before it is begun."""

from __future__ import annotations

from .comfy_bridge.sampling import BACKWARD_COST, FORWARD_COST
from .request import Request
from .resume import checks_gradient
from .seeds import screened


def planned_cost(request: Request, iterations: int, steps: int) -> float:
    """A run in plain drawings of `steps` steps: screening, iterations with their probes and sweeps,
    the gradient check, the redraw."""
    estimator, terms, mode = request.gradient_estimator, request.terms, request.mode
    taken = request.loop_steps(steps)
    full_from = request.full_from(steps)
    full = 0 if full_from is None else min(request.iterations - full_from, iterations) + 1
    drawn = [taken] * (iterations + 1 - full) + [steps] * full

    def gradient(count: int) -> float:
        sweep = mode.costs(count) * BACKWARD_COST if estimator.pulls(terms) else 0
        return count * FORWARD_COST * estimator.runs(terms) + sweep

    total = sum(drawn) * FORWARD_COST + sum(gradient(count) for count in drawn[:-1])
    total += screened(request) * taken * FORWARD_COST
    checked = checks_gradient(request) and iterations > 0 and estimator.exact(terms)
    if checked and request.differentiates_denoiser:
        total += 2 * drawn[0] * FORWARD_COST
        total += drawn[0] * BACKWARD_COST if mode.biased(drawn[0]) else 0
    if taken < steps:
        first_is_drawn = full_from == 0
        total += ((not first_is_drawn) + (not full)) * steps * FORWARD_COST
    return total / steps
