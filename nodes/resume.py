"""Going on with an earlier run: what must be as it was, and what may differ."""

from __future__ import annotations

from torch import Tensor

from ..dno_core.optimizers import STATE
from ..dno_core.trajectories.continuation import (
    NotTheSameRun,
    require_same_shape,
    require_same_terms,
)
from .request import FULL_VAE, Request, meta

LATER = {"optimize_steps": 0, "loop_decoder": FULL_VAE}
"""Widgets that runs of older packs do not name, and what those did."""

FIXED = (
    "seed", "steps", "cfg", "scheduler", "denoise", "sigmas", "guider", "eta", "optimizer", *LATER
)  # fmt: skip
"""Widgets, and inputs of the advanced node, without which the same noise is another picture or the
optimizer's moments are void.

Iterations, learning rate, clip, regularizer, estimator, gradient mode and weights only shape what
follows.
"""


def is_done(request: Request) -> bool:
    """Whether the run to resume has all the iterations that are asked for."""
    return request.resume is not None and request.resume.last >= request.iterations


def checks_gradient(request: Request) -> bool:
    """Whether the first gradient is to be checked: not again where this run's was already."""
    earlier = request.resume
    return request.check_gradient and not (earlier and earlier.meta.get("gradient_checked"))


def require_same_run(request: Request, latent: Tensor) -> None:
    """Raise NotTheSameRun where the inputs rule out a continuation; to be called before any work.

    Whether model, prompts and VAE are the same shows only once the last noise is sampled again.
    """
    earlier = request.resume
    if earlier is None:
        return
    before, now = {**LATER, **earlier.meta}, meta(request)
    for name in FIXED:
        if name in before and before[name] != now[name]:
            raise NotTheSameRun(_other(name, before[name], now[name]))
    if earlier.last > 0 and set(earlier.optimizer_state) != set(STATE[request.optimizer]):
        raise NotTheSameRun(
            f"The run to resume holds no moments of {request.optimizer}, so it cannot go on as it "
            "was. Choose another file, or disconnect resume to begin a new run."
        )
    require_same_terms(earlier.terms, tuple(term.info for term in request.terms))
    if not getattr(latent, "is_nested", False):
        noise = earlier.last_noise
        require_same_shape(noise, noise.new_empty(1).expand(noise.shape[0], *latent.shape))


def _other(name: str, before: object, now: object) -> str:
    if name == "sigmas":
        return (
            "The run to resume was begun with other sigmas. Connect the same schedule, or "
            "disconnect resume to begin a new run."
        )
    remedy = f"Set {name} to {before}, or disconnect resume to begin a new run."
    if name == "seed":
        remedy = f"Set seed to {before} and 'control after generate' to fixed."
    return f"The run to resume was begun with {name} {before} and the widget says {now}. {remedy}"
