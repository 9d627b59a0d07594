"""What a run of DNO Sampler is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..dno_core import (
    Auto,
    GradientEstimator,
    GradientMode,
    PermutationRegularizer,
    Regularizer,
    StopChoice,
    Term,
    Trajectory,
    late_begin,
)
from .drawing import Drawing
from .live.changes import Change, write_changes

FULL_VAE, TINY_VAE = "full VAE", "tiny VAE"
LOOP_DECODERS = (FULL_VAE, TINY_VAE)


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
    gradient_mode: str = "exact"
    gradient_steps: int = 10
    optimize_steps: int = 0
    loop_decoder: str = FULL_VAE
    graph_memory: str = "auto"
    finish_iterations: int = 0
    late_iterations: int = 0
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

    @property
    def mode(self) -> GradientMode:
        """Raises ValueError for a mode that does not exist, or less than one step of it."""
        return GradientMode(self.gradient_mode, self.gradient_steps)  # type: ignore[arg-type]

    @property
    def differentiates_denoiser(self) -> bool:
        """Whether a graph of the denoiser is ever built."""
        return self.gradient_estimator.pulls(self.terms) and self.mode.costs(1) > 0

    def loop_steps(self, steps: int) -> int:
        """How many of a schedule's steps an iteration takes."""
        return min(self.optimize_steps, steps) if self.optimize_steps > 0 else steps

    def full_from(self, steps: int) -> int | None:
        """The first iteration that takes all of a schedule's steps where those before take fewer;
        None if there is none. A run that is resumed in that part stays in it."""
        if self.loop_steps(steps) == steps:
            return None
        records = () if self.resume is None else self.resume.records
        begun = next((record.index for record in records if record.steps == steps), None)
        late = self.late_from(steps)
        if begun is not None or self.finish_iterations == 0:
            return late if begun is None else begun
        start = self._last_part(self.finish_iterations)
        return start if late is None else min(start, late)

    def late_from(self, steps: int) -> int | None:
        """The first iteration in which the noise of the late steps moves alone; None if there is
        none: not asked for, no noise enters late, or probes move all of it. A run that is resumed
        in that part stays in it."""
        if self.eta == 0 or steps - late_begin(steps) < 2:
            return None
        if self.gradient_estimator.runs(self.terms):
            return None
        begun = None if self.resume is None else self.resume.meta.get("late_from")
        if isinstance(begun, int) and self.resume is not None and begun <= self.resume.last:
            return begun
        return self._last_part(self.late_iterations) if self.late_iterations else None

    def _last_part(self, length: int) -> int:
        """Where a part of so many iterations begins: after those that are done already."""
        return max(self.iterations - length, 0 if self.resume is None else self.resume.last + 1)

    def redraw_means(self, steps: int) -> str:
        """What the result of the iterations is drawn again with: "all 20 steps and the full VAE";
        "" where they have both."""
        means = [f"all {steps} steps"] if self.loop_steps(steps) < steps else []
        means += ["the full VAE"] if self.loop_decoder != FULL_VAE else []
        return " and ".join(means)


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
    cosine: Sequence[float] = (),
) -> dict[str, Any]:
    """What a trajectory says of its run besides numbers.

    `seeds`: of every image, if screened. `checked`: whether the gradient passed its check.
    `changes`: those made by hand while it ran, and those it was given to repeat. `cosine`: of every
    image's first gradient with the exact one, in a biased gradient mode.
    """
    chosen: dict[str, Any] = {"screened_seeds": list(seeds)} if seeds else {}
    if changes:
        chosen["changes"] = write_changes(changes)
    if checked:
        chosen["gradient_checked"] = True
    if cosine:
        chosen["gradient_cosine"] = list(cosine)
    earlier = request.resume.meta if request.resume else {}
    return {
        **{name: value for name, value in earlier.items() if name != "changes"},
        **request.drawing.meta,
        "eta": request.eta,
        "optimizer": request.optimizer,
        "warmup": request.warmup,
        "decay": request.decay,
        "gradient_mode": request.gradient_mode,
        "optimize_steps": request.optimize_steps,
        "finish_iterations": request.finish_iterations,
        "late_iterations": request.late_iterations,
        "loop_decoder": request.loop_decoder,
        "estimator": type(request.gradient_estimator).__name__,
        "regularizer": type(request.regularizer or PermutationRegularizer()).__name__,
        **chosen,
    }
