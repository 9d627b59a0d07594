"""The climb: from the drawn noise to a trajectory, with all that the artist sees on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..dno_core import (
    Iteration,
    NonFinite,
    PermutationRegularizer,
    Problem,
    Recorder,
    Trajectory,
    first_reason,
    lights_of_run,
    optimize,
    warning_lights,
)
from ..dno_core.trajectories.continuation import require_same_shape
from .comfy_bridge.loading import has_quantized_weights, is_out_of_memory
from .comfy_bridge.progress import Progress
from .pace import settings_of, stop_rules
from .recovery import keep_cancelled
from .report import failure_line, status_line
from .request import Request, meta
from .resume import checks_gradient

log = logging.getLogger("dno")

CHECK_TOLERANCE = {torch.float64: 0.02, torch.float32: 0.05}
HALF_TOLERANCE = 0.25
"""Relative error allowed between the gradient and its finite difference, by model precision."""

UNCHECKED = (
    "The gradient could not be checked: this picture changes too abruptly for a finite difference. "
    "The run goes on."
)


def climb(
    request: Request,
    problem: Problem,
    z: Tensor,
    to_latent: Callable[[Tensor], Tensor],
    progress: Progress,
    seeds: Sequence[int] = (),
) -> tuple[Trajectory, Tensor]:
    """The run's trajectory and the last x_T. `seeds`: those that z was chosen from, if any were."""
    earlier = request.resume
    if earlier is not None:
        require_same_shape(earlier.last_noise, z)
        z = earlier.last_noise.to(z)
    regularizer = request.regularizer or PermutationRegularizer()
    infos = problem.infos
    folder = Path(folder_paths.get_temp_directory()) / "dno"
    recorder = Recorder(infos, request.memory_mb * 2**20, folder, continues=earlier)
    known = len(recorder.records)
    rules = stop_rules(request, infos, known)
    start = 0 if earlier is None else earlier.last
    tolerance = _check_tolerance(request)
    exact = tolerance is not None and request.gradient_estimator.exact(request.terms)

    def said() -> dict[str, Any]:
        return meta(request, seeds, checked=exact and recorder.records[-1].index > start)

    iterations = optimize(
        problem,
        z,
        settings_of(request, regularizer.gamma, infos),
        seed=request.seed,
        optimizer=request.optimizer,
        estimator=request.gradient_estimator,
        regularizer=regularizer,
        check_tolerance=tolerance,
        start=start,
        optimizer_state=None if earlier is None else earlier.optimizer_state,
    )
    failures: tuple[str, ...] = ()
    reason, final = "", z[0]
    try:
        for iteration in iterations:
            final = iteration.latent
            recorder.add(iteration, to_latent(iteration.latent))
            warnings = warning_lights(infos, recorder.records)
            progress.show(recorder.images[-1])
            reason = first_reason(rules, recorder.records) or ""
            status = status_line(recorder, request.iterations, progress.seconds_left, warnings)
            progress.text("\n".join([status, *_remarks(iteration, reason, seeds)]))
            if reason:
                break
    except comfy.model_management.InterruptProcessingException:
        try:
            if recorder.records:
                lights = lights_of_run(infos, recorder.records)
                cancelled = recorder.finish("cancelled", lights, said())
                keep_cancelled(cancelled, request.node_id)
        except Exception:
            log.exception("The best picture of the cancelled run could not be kept")
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        survivable = isinstance(error, (NonFinite, OSError)) or is_out_of_memory(error)
        if not (survivable and recorder.records):
            raise
        reason = failure_line(error, len(recorder.records))
        failures = (reason,)
        log.warning(reason)
        progress.text(f"WARNING: {reason}")
    finally:
        iterations.close()
    lights = lights_of_run(infos, recorder.records)
    return recorder.finish(reason, (*lights, *failures), said()), final


def _remarks(iteration: Iteration, reason: str, seeds: Sequence[int]) -> list[str]:
    """What there is to say of an iteration besides its numbers: lines for the node."""
    remarks = []
    if iteration.update is not None and iteration.update.inconclusive:
        log.warning(UNCHECKED)
        remarks.append(UNCHECKED)
    if reason and seeds:
        remarks.append(f"Started from seed {', '.join(map(str, seeds))}.")
    return remarks + ([f"Ended: {reason}."] if reason else [])


def _check_tolerance(request: Request) -> float | None:
    """Of the gradient check, by the coarser of model and VAE; None for no check."""
    model = request.model
    if not checks_gradient(request) or has_quantized_weights(model):
        return None
    dtypes = (model.model.manual_cast_dtype or model.model_dtype(), request.vae.vae_dtype)
    return max(CHECK_TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in dtypes)
