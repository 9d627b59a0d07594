"""The climb: from the drawn noise to a trajectory, with all that the artist sees on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..dno_core import (
    Iteration,
    NonFinite,
    Part,
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
from .comfy_bridge.forecast import memory_use
from .comfy_bridge.loading import has_quantized_weights, is_out_of_memory
from .comfy_bridge.progress import Progress
from .live.session import Session, Stopped
from .live.start import open_session
from .pace import first_settings, settings_of, stop_rules
from .recovery import keep_best
from .redraw import FullQuality
from .report import bias_line, failure_line, redraw_failure_line, redraw_lines, status_line
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
    quality: FullQuality | None = None,
    parts: Sequence[Part] = (),
) -> tuple[Trajectory, Tensor]:
    """The run's trajectory and the last x_T. `seeds`: those that z was chosen from, if any were.

    `quality`: at which the result is drawn again, where the problem's own is lower. `parts`: those
    in which the run goes on otherwise.
    """
    earlier = request.resume
    if earlier is not None:
        require_same_shape(earlier.last_noise, z)
        z = earlier.last_noise.to(z)
    infos = problem.infos
    folder = Path(folder_paths.get_temp_directory()) / "dno"
    recorder = Recorder(infos, request.memory_mb * 2**20, folder, continues=earlier)
    start = 0 if earlier is None else earlier.last
    tolerance = _check_tolerance(request, problem)
    exact = request.gradient_estimator.exact(request.terms) and request.differentiates_denoiser
    regularizer = request.regularizer or PermutationRegularizer()
    begun = first_settings(request, regularizer.gamma, infos)
    failures: tuple[str, ...] = ()
    with open_session(request, begun, infos, recorder) as session:
        progress.checks = (session.raise_if_stopped,)

        def end(reason: str) -> Trajectory:
            lights = lights_of_run(infos, recorder.records)
            checked = tolerance is not None and exact and recorder.records[-1].index > start
            said = meta(request, seeds, checked, session.settle(), follower.cosine)
            for part in parts:
                if part.held:
                    said["late_from"] = part.start
            return recorder.finish(reason, (*lights, *failures), said)

        iterations = optimize(
            problem,
            z,
            settings_of(request, begun, session.changes_for),
            seed=request.seed,
            optimizer=request.optimizer,
            estimator=request.gradient_estimator,
            regularizer=regularizer,
            check_tolerance=tolerance,
            start=start,
            optimizer_state=None if earlier is None else earlier.optimizer_state,
            parts=parts,
        )
        follower = _Follower(request, recorder, session, progress, to_latent, seeds)
        try:
            reason = follower.follow(iterations)
        except Stopped:
            reason = session.stop_reason
        except comfy.model_management.InterruptProcessingException:
            if recorder.records:
                _keep(lambda: end("cancelled"), request, "cancelled")
            raise
        except Exception as error:
            if not recorder.records:
                raise
            if not _is_survivable(error):
                _keep(lambda: end("failed"), request, "failed")
                raise
            reason = failure_line(error, len(recorder.records))
            failures = (reason,)
            log.warning(reason)
            progress.text(f"WARNING: {reason}")
        finally:
            iterations.close()
        trajectory = end(reason)
        if session.stop() == "current":
            trajectory = replace(trajectory, best=(len(trajectory.records) - 1,) * z.shape[1])
        if quality is not None:
            progress.checks = ()  # the run is over, stopped or not: only a cancel ends its redraw
            better = session.stop() != "current"
            trajectory = _redrawn(request, trajectory, problem, quality, better)
            progress.text("\n".join([f"Ended: {reason}.", *redraw_lines(trajectory)]))
        session.close("done", reason)
    return trajectory, follower.final


def _redrawn(
    request: Request, trajectory: Trajectory, problem: Problem, quality: FullQuality, better: bool
) -> Trajectory:
    """The run with its result at full quality; as it was, with a warning, where that fails."""
    try:
        return quality.redraw(trajectory, problem, better)
    except comfy.model_management.InterruptProcessingException:
        _keep(lambda: trajectory, request, "cancelled")
        raise
    except Exception as error:
        if not _is_survivable(error):
            _keep(lambda: trajectory, request, "failed")
            raise
        line = redraw_failure_line(error, quality.means)
        log.warning(line)
        earlier = request.resume.redraw if request.resume is not None else None
        if earlier is not None and earlier.winners == trajectory.best:
            trajectory = trajectory.with_redraw(earlier)
        return replace(trajectory, warnings=(*trajectory.warnings, line))


def _is_survivable(error: Exception) -> bool:
    """Whether what was won before stays good."""
    return isinstance(error, (NonFinite, OSError)) or is_out_of_memory(error)


@dataclass
class _Follower:
    """Takes in one iteration after another and shows it; `final` is the last x_T, `cosine` [B]
    what the gradient of a biased mode had with the exact one, where both were computed."""

    request: Request
    recorder: Recorder
    session: Session
    progress: Progress
    to_latent: Callable[[Tensor], Tensor]
    seeds: Sequence[int]
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    cosine: tuple[float, ...] = ()

    def follow(self, iterations: Iterable[Iteration]) -> str:
        """Why the run ended. Raises Stopped, and what the iterations raise."""
        request, recorder, progress = self.request, self.recorder, self.progress
        known = len(recorder.records)
        rules = stop_rules(request, recorder.terms, known)
        for iteration in iterations:
            self.final = iteration.latent
            recorder.add(iteration, self.to_latent(iteration.latent))
            if iteration.update is not None and iteration.update.cosine is not None:
                self.cosine = tuple(iteration.update.cosine.clamp(-1, 1).cpu().double().tolist())
            warnings = warning_lights(recorder.terms, recorder.records)
            progress.show(recorder.images[-1])
            left = progress.seconds_left
            lines = [status_line(recorder, request.iterations, left, warnings)]
            lines += _remarks(iteration)
            best = [recorder.records[position].index for position in recorder.best]
            memory = memory_use(iteration.z.device)
            self.session.step(recorder.records[-1], best, left, memory, warnings)
            if self.session.is_paused:
                progress.text("\n".join([*lines, "Paused."]))
                progress.waited(self.session.wait(progress.call))
            reason = self.session.stop_reason or first_reason(rules, recorder.records) or ""
            if reason:
                progress.text("\n".join([*lines, *self._ending(reason)]))
                return reason
            if progress.previews:  # else the page has a panel, which says it already
                progress.text("\n".join(lines))
        return ""

    def _ending(self, reason: str) -> list[str]:
        begun = f"Started from seed {', '.join(map(str, self.seeds))}."
        return [*([begun] if self.seeds else []), f"Ended: {reason}."]


def _keep(trajectory: Callable[[], Trajectory], request: Request, what: str) -> None:
    """After a cancel or an error: what was won stays on the node.

    A failure in it must not hide the first one.
    """
    try:
        keep_best(trajectory(), request.node_id, what)
    except Exception:
        log.exception("The best picture of the %s run could not be kept", what)


def _remarks(iteration: Iteration) -> list[str]:
    """What there is to say of an iteration besides its numbers: lines for the node."""
    update = iteration.update
    if update is None:
        return []
    lines = [UNCHECKED] if update.inconclusive else []
    for line in lines:
        log.warning(line)
    if update.cosine is not None:
        lines.append(bias_line(update.cosine.tolist()))
        log.info(lines[-1])
    return lines


def _check_tolerance(request: Request, problem: Problem) -> float | None:
    """Of the gradient check, by the coarser of model and VAE; None for no check."""
    model = request.model
    if not checks_gradient(request) or has_quantized_weights(model):
        return None
    vae_dtype = getattr(problem.decoder, "dtype", request.vae.vae_dtype)
    dtypes = (model.model.manual_cast_dtype or model.model_dtype(), vae_dtype)
    return max(CHECK_TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in dtypes)
