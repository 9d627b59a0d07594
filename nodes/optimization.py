"""One run of DNO Sampler: from a node's inputs to the best latent, image and the trajectory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import torch
from torch import Tensor

from ..dno_core import (
    Iteration,
    NonFinite,
    PermutationRegularizer,
    Problem,
    Recorder,
    Regularizer,
    Settings,
    Term,
    Trajectory,
    Typicality,
    after_iterations,
    after_seconds,
    first_reason,
    optimize,
    require_gradients,
    warning_lights,
    weights_of,
)
from .comfy_bridge.decoding import BlockDecoder
from .comfy_bridge.forecast import forecast_line
from .comfy_bridge.loading import (
    has_quantized_weights,
    is_out_of_memory,
    reward_patcher,
    run_model,
    run_vae,
)
from .comfy_bridge.progress import Progress
from .comfy_bridge.refusals import refuse_wrong_vae
from .comfy_bridge.sampling import (
    BACKWARD_COST,
    FORWARD_COST,
    ComfyMap,
    NoiseOptimizationSampler,
    draw_noise,
    guided,
    model_steps,
    stock_sampler,
)
from .comfy_bridge.scope import NormalInputs, gradient_scope, normal_copies
from .recovery import keep_cancelled
from .report import failure_line, status_line

log = logging.getLogger("dno")

CHECK_TOLERANCE = {torch.float64: 0.02, torch.float32: 0.05}
HALF_TOLERANCE = 0.25
"""Relative error allowed between the gradient and its finite difference, by model precision."""


@dataclass(frozen=True)
class Request:
    """What DNO Sampler was asked for; the names are those of its inputs."""

    model: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]
    vae: Any
    terms: tuple[Term, ...]
    seed: int
    steps: int
    cfg: float
    scheduler: str
    denoise: float
    iterations: int
    learning_rate: float
    eta: float = 1.0
    regularizer: Regularizer | None = None
    optimizer: str = "adam"
    gradient_clip: float = 1.0
    check_gradient: bool = True
    time_limit: float = 0.0
    memory_mb: int = 512
    node_id: str | None = None


@dataclass(frozen=True)
class Result:
    """`latent` a LATENT and `image` [B,H,W,3] of the best iteration of every image."""

    latent: dict[str, Any]
    image: Tensor
    trajectory: Trajectory


class _RunProblem(Problem):
    """Scores rewards whose tensors were made where nodes run: in inference mode."""

    def score(
        self, image: Tensor, weights: Sequence[float], differentiate: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        with NormalInputs():
            return super().score(image, weights, differentiate)


def run(request: Request) -> Result:
    """Optimize the noise and return the best; with 0 iterations, the stock sampler's picture.

    Raises Unsupported, GradientMismatch or NonFinite before anything was won; later failures end
    the run with a warning and the best so far. A cancel always goes through.
    """
    if request.iterations:
        _require_climbable(request.terms)
    latent = _model_latent(request.model, request.latent)
    refuse_wrong_vae(request.model, request.vae)
    sigmas = _sigmas(request)
    if len(sigmas) < 2:
        raise ValueError("With denoise 0 there is nothing to sample. Set denoise above 0.")
    if request.iterations == 0:
        samples, trajectory = _stock(request, latent, sigmas)
    else:
        trajectory = _optimized(request, latent, sigmas)
        samples = trajectory.take(trajectory.latents, trajectory.best)
        management = comfy.model_management
        samples = samples.to(management.intermediate_device(), management.intermediate_dtype())
    out = {key: value for key, value in request.latent.items() if "downscale_ratio" not in key}
    return Result({**out, "samples": samples}, request.vae.decode(samples), trajectory)


def _require_climbable(terms: tuple[Term, ...]) -> None:
    if all(term.watch or not term.weight for term in terms):
        raise ValueError(
            "Every reward is only watched, so nothing pulls the picture anywhere. "
            "Give one reward of the mix a weight and switch its 'watch only' off."
        )
    require_gradients(terms)


def _model_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        return samples
    fixed = comfy.sample.fix_empty_latent_channels(
        model,
        samples,
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    channels = model.get_model_object("latent_format").latent_channels
    if fixed.shape[1] != channels:
        raise ValueError(
            f"The latent has {fixed.shape[1]} channels and this model works on {channels}. "
            "Connect an empty latent, or one encoded by this model's own VAE."
        )
    return fixed


def _sigmas(request: Request) -> Tensor:
    """The schedule that the stock KSampler takes for the same widgets."""
    name = "euler" if request.eta == 0 else "euler_ancestral"
    stock = comfy.samplers.KSampler(
        request.model,
        steps=request.steps,
        device=request.model.load_device,
        sampler=name,
        scheduler=request.scheduler,
        denoise=request.denoise,
        model_options=request.model.model_options,
    )
    return stock.sigmas


def _stock(request: Request, latent: Tensor, sigmas: Tensor) -> tuple[Tensor, Trajectory]:
    """0 iterations: ComfyUI's own sampler object on the untouched model, then one scoring."""
    noise = comfy.sample.prepare_noise(latent, request.seed, request.latent.get("batch_index"))
    samples = comfy.sample.sample_custom(
        request.model,
        noise,
        request.cfg,
        stock_sampler(request.eta),
        sigmas,
        request.positive,
        request.negative,
        latent,
        noise_mask=request.latent.get("noise_mask"),
        disable_pbar=True,
        seed=request.seed,
    )
    with gradient_scope():
        model_sampling = request.model.get_model_object("model_sampling")
        steps = model_steps(model_sampling, normal_copies(sigmas), request.eta)
        device = request.model.load_device
        z = draw_noise(normal_copies(noise).to(device), steps, request.seed)
        image = normal_copies(request.vae.decode(samples)).movedim(-1, 1).float()
        patchers = _reward_patchers(request.terms)
        comfy.model_management.load_models_gpu(patchers)
        image = image.to(device).clamp(0, 1)
        weights = weights_of([term.info for term in request.terms])
        problem = Problem(None, None, request.terms)  # type: ignore[arg-type]
        scores, objective, _ = problem.score(image, weights, differentiate=False)
        recorder = Recorder(problem.infos)
        iteration = Iteration(
            index=0,
            z=z,
            latent=samples,
            image=image,
            scores=scores,
            objective=objective,
            saturated=((image == 0) | (image == 1)).flatten(1).float().mean(1),
            typicality=Typicality()(z),
            settings=Settings(request.learning_rate, 0.0, weights, request.gradient_clip),
            update=None,
            seconds=0.0,
            optimizer_state={},
        )
        recorder.add(iteration, samples)
        return samples, recorder.finish("0 iterations asked for", meta=_meta(request))


def _optimized(request: Request, latent: Tensor, sigmas: Tensor) -> Trajectory:
    progress = Progress(request.node_id)
    with gradient_scope():
        vae = run_vae(request.vae)
        companions = [vae.patcher, *_reward_patchers(request.terms)]
        model = run_model(request.model, companions)
        trajectories: list[Trajectory] = []

        def drive(noise_map: ComfyMap, to_latent: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
            calls = len(noise_map.steps)
            progress.plan(
                planned_cost(calls, request.iterations, request.check_gradient),
                forecast_line(model, vae, z, request.iterations, calls),
            )
            decoder = BlockDecoder(vae, to_latent, progress.call)
            problem = _RunProblem(noise_map, decoder, request.terms)
            trajectory, final = _climb(request, problem, z, to_latent, progress)
            trajectories.append(trajectory)
            return final

        positive, negative = request.positive, request.negative
        latent = normal_copies(latent)
        with guided(model, positive, negative, request.cfg, latent) as guider:
            noise = comfy.sample.prepare_noise(
                latent, request.seed, request.latent.get("batch_index")
            )
            guider.sample(
                noise,
                latent,
                NoiseOptimizationSampler(request.eta, progress.step, drive),
                normal_copies(sigmas),
                denoise_mask=normal_copies(request.latent.get("noise_mask")),
                disable_pbar=True,
                seed=request.seed,
            )
        return trajectories[0]


def _climb(
    request: Request,
    problem: Problem,
    z: Tensor,
    to_latent: Callable[[Tensor], Tensor],
    progress: Progress,
) -> tuple[Trajectory, Tensor]:
    regularizer = request.regularizer or PermutationRegularizer()
    infos = problem.infos
    settings = Settings(
        request.learning_rate, regularizer.gamma, weights_of(infos), request.gradient_clip
    )
    recorder = Recorder(
        infos, request.memory_mb * 2**20, Path(folder_paths.get_temp_directory()) / "dno"
    )
    rules = [after_iterations(request.iterations)]
    if request.time_limit > 0:
        rules.append(after_seconds(request.time_limit))
    iterations = optimize(
        problem,
        z,
        lambda index: settings,
        seed=request.seed,
        optimizer=request.optimizer,
        regularizer=regularizer,
        check_tolerance=_check_tolerance(request),
    )
    warnings: tuple[str, ...] = ()
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
                cancelled = recorder.finish("cancelled", warnings, _meta(request))
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
    return recorder.finish(reason, warnings, _meta(request)), final


def planned_cost(calls: int, iterations: int, check_gradient: bool) -> float:
    """A run in plain denoiser calls: forwards, backwards and the gradient check."""
    forward = (iterations + 1) * calls * FORWARD_COST
    checks = 2 * calls * FORWARD_COST if check_gradient else 0
    return forward + iterations * calls * BACKWARD_COST + checks


def _check_tolerance(request: Request) -> float | None:
    """Of the gradient check, by the coarser of model and VAE; None for no check."""
    model = request.model
    if not request.check_gradient or has_quantized_weights(model):
        return None
    dtypes = (model.model.manual_cast_dtype or model.model_dtype(), request.vae.vae_dtype)
    return max(CHECK_TOLERANCE.get(dtype, HALF_TOLERANCE) for dtype in dtypes)


def _reward_patchers(terms: tuple[Term, ...]) -> list[Any]:
    modules = {id(m): m for term in terms for m in term.reward.modules}
    return [reward_patcher(module) for module in modules.values()]


def _meta(request: Request) -> dict[str, Any]:
    """What a trajectory says of its run besides numbers."""
    return {
        "seed": request.seed,
        "steps": request.steps,
        "cfg": request.cfg,
        "scheduler": request.scheduler,
        "denoise": request.denoise,
        "eta": request.eta,
        "optimizer": request.optimizer,
    }
