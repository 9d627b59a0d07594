"""What a run costs, in plain drawings, counted before it is begun."""

from __future__ import annotations

from .comfy_bridge.sampling import BACKWARD_COST, FORWARD_COST
from .redraw import REDRAWN_PICTURES
from .request import Request
from .resume import checks_gradient
from .seeds import screened


def planned_cost(request: Request, iterations: int, steps: int) -> float:
    """A run in plain drawings of `steps` steps: screening, iterations with their probes and sweeps,
    the gradient check, the redraw."""
    estimator, terms, mode = request.gradient_estimator, request.terms, request.mode
    taken = request.loop_steps(steps)
    forward = taken * FORWARD_COST
    sweep = mode.costs(taken) * BACKWARD_COST if estimator.pulls(terms) else 0
    each = forward * (1 + estimator.runs(terms)) + sweep
    once = forward * (screened(request) + 1)
    checked = checks_gradient(request) and iterations > 0 and estimator.exact(terms)
    if checked and request.differentiates_denoiser:
        once += 2 * forward + (taken * BACKWARD_COST if mode.biased else 0)
    if taken < steps:
        once += REDRAWN_PICTURES * steps * FORWARD_COST
    return (once + iterations * each) / steps
