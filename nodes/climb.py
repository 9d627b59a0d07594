"""The climb: from the drawn noise to a trajectory, with all that the artist sees on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..dno_core import (
    Backpropagation,
    NonFinite,
    PermutationRegularizer,
    Problem,
    Recorder,
    Settings,
    Trajectory,
    after_iterations,
    after_seconds,
    first_reason,
    optimize,
    warning_lights,
    weights_of,
)
from ..dno_core.continuation import require_same_shape
from .comfy_bridge.loading import has_quantized_weights, is_out_of_memory
from .comfy_bridge.progress import Progress
from .recovery import keep_cancelled
from .report import failure_line, status_line
from .request import Request, meta
from .resume import checks_gradient

log = logging.getLogger("dno")

CHECK_TOLERANCE = {torch.float64: 0.02, torch.float32: 0.05}
HALF_TOLERANCE = 0.25
"""Relative error allowed between the gradient and its finite difference, by model precision."""


def climb(
    request: Request,
    problem: Problem,
    z: Tensor,
    to_latent: Callable[[Tensor], Tensor],
    progress: Progress,
) -> tuple[Trajectory, Tensor]:
    earlier = request.resume
    if earlier is not None:
        require_same_shape(earlier.last_noise, z)
        z = earlier.last_noise.to(z)
    regularizer = request.regularizer or PermutationRegularizer()
    infos = problem.infos
    settings = Settings(
        request.learning_rate, regularizer.gamma, weights_of(infos), request.gradient_clip
    )
    folder = Path(folder_paths.get_temp_directory()) / "dno"
    recorder = Recorder(infos, request.memory_mb * 2**20, folder, continues=earlier)
    known = len(recorder.records)
    rules = [after_iterations(request.iterations)]
    if request.time_limit > 0:
        limit = after_seconds(request.time_limit)
        rules.append(lambda records: limit(records[known:]))  # of this run, not of the earlier
    iterations = optimize(
        problem,
        z,
        lambda index: settings,
        seed=request.seed,
        optimizer=request.optimizer,
        estimator=request.estimator or Backpropagation(),
        regularizer=regularizer,
        check_tolerance=_check_tolerance(request),
        start=0 if earlier is None else earlier.last,
        optimizer_state=None if earlier is None else earlier.optimizer_state,
    )
    warnings: tuple[str, ...] = warning_lights(infos, recorder.records) if known else ()
    reason, final = "", z[0]
    try:
        for iteration in iterations:
            final = iteration.latent
            recorder.add(iteration, to_latent(iteration.latent))
            warnings = warning_lights(infos, recorder.records)
            progress.show(recorder.images[-1])
            progress.text(
                status_line(recorder, request.iterations, progress.seconds_left, warnings)
            )
            if reason := first_reason(rules, recorder.records) or "":
                break
    except comfy.model_management.InterruptProcessingException:
        try:
            if recorder.records:
                cancelled = recorder.finish("cancelled", warnings, meta(request))
                keep_cancelled(cancelled, request.node_id)
        except Exception:
            log.exception("The best picture of the cancelled run could not be kept")
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        survivable = isinstance(error, (NonFinite, OSError)) or is_out_of_memory(error)
        if not (survivable and recorder.records):
            raise
        reason = failure_line(error, len(recorder.records))
        warnings = (*warnings, reason)
        log.warning(reason)
        progress.text(f"WARNING: {reason}")
    finally:
        iterations.close()
    return recorder.finish(reason, warnings, meta(request)), final


def _check_tolerance(request: Request) -> float | None:
    """Of the gradient check, by the coarser of model and VAE; None for no check."""
    model = request.model
    if not checks_gradient(request) or has_quantized_weights(model):
        return None
    dtypes = (model.model.manual_cast_dtype or model.model_dtype(), request.vae.vae_dtype)
    return max(CHECK_TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in dtypes)
