"""Going on with an earlier run: what must be as it was, and what may differ."""

from __future__ import annotations

from torch import Tensor

from ..dno_core.optimizers import STATE
from ..dno_core.trajectories.continuation import (
    NotTheSameRun,
    require_same_shape,
    require_same_terms,
)
from .request import Request, meta

FIXED = ("seed", "steps", "cfg", "scheduler", "denoise", "eta", "optimizer")
"""Widgets without which the same noise is another picture, or the optimizer's moments are void.

Iterations, learning rate, clip, regularizer, estimator and weights only shape what follows.
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
    now = meta(request)
    for name in FIXED:
        if name in earlier.meta and earlier.meta[name] != now[name]:
            raise NotTheSameRun(
                f"The run to resume was begun with {name} {earlier.meta[name]} and the widget "
                f"says {now[name]}. {_remedy(name, earlier.meta[name])}"
            )
    if earlier.last > 0 and set(earlier.optimizer_state) != set(STATE[request.optimizer]):
        raise NotTheSameRun(
            f"The run to resume holds no moments of {request.optimizer}, so it cannot go on as it "
            "was. Choose another file, or disconnect resume to begin a new run."
        )
    require_same_terms(earlier.terms, tuple(term.info for term in request.terms))
    if not getattr(latent, "is_nested", False):
        noise = earlier.last_noise
        require_same_shape(noise, noise.new_empty(1).expand(noise.shape[0], *latent.shape))


def _remedy(name: str, value: object) -> str:
    if name == "seed":
        return f"Set seed to {value} and 'control after generate' to fixed."
    return f"Set {name} to {value}, or disconnect resume to begin a new run."
