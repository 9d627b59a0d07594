"""What a run of DNO Sampler is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..dno_core import (
    Auto,
    GradientEstimator,
    PermutationRegularizer,
    Regularizer,
    StopChoice,
    Term,
    Trajectory,
)
from .drawing import Drawing
from .live.changes import Change, write_changes


@dataclass(frozen=True)
class Request:
    """What DNO Sampler was asked for; the names are those of its inputs.

    node_id: of the node in its graph. workflow: id of that graph, which tells equal node ids apart.
    """

    drawing: Drawing
    latent: dict[str, Any]
    vae: Any
    terms: tuple[Term, ...]
    iterations: int
    learning_rate: float
    eta: float = 1.0
    regularizer: Regularizer | None = None
    estimator: GradientEstimator | None = None
    optimizer: str = "adam"
    gradient_clip: float = 1.0
    check_gradient: bool = True
    time_limit: float = 0.0
    memory_mb: int = 512
    stop: StopChoice | None = None
    warmup: int = 0
    decay: str = "constant"
    screen_seeds: int = 1
    changes: str = ""
    resume: Trajectory | None = None
    node_id: str | None = None
    workflow: str | None = None

    @property
    def model(self) -> Any:
        return self.drawing.model

    @property
    def seed(self) -> int:
        return self.drawing.seed

    @property
    def gradient_estimator(self) -> GradientEstimator:
        return self.estimator or Auto()


@dataclass(frozen=True)
class Result:
    """`latent` a LATENT and `image` [B,H,W,3] of the best iteration of every image."""

    latent: dict[str, Any]
    image: Tensor
    trajectory: Trajectory


def meta(
    request: Request,
    seeds: Sequence[int] = (),
    checked: bool = False,
    changes: Sequence[Change] = (),
) -> dict[str, Any]:
    """What a trajectory says of its run besides numbers.

    `seeds`: of every image, if screened. `checked`: whether the gradient passed its check.
    `changes`: those made by hand while it ran, and those it was given to repeat.
    """
    chosen: dict[str, Any] = {"screened_seeds": list(seeds)} if seeds else {}
    if changes:
        chosen["changes"] = write_changes(changes)
    if checked:
        chosen["gradient_checked"] = True
    earlier = request.resume.meta if request.resume else {}
    return {
        **{name: value for name, value in earlier.items() if name != "changes"},
        **request.drawing.meta,
        "eta": request.eta,
        "optimizer": request.optimizer,
        "warmup": request.warmup,
        "decay": request.decay,
        "estimator": type(request.gradient_estimator).__name__,
        "regularizer": type(request.regularizer or PermutationRegularizer()).__name__,
        **chosen,
    }
