"""One run of DNO Sampler: from a node's inputs to the best latent, image and the trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
from torch import Tensor

from ..dno_core import (
    Backpropagation,
    Trajectory,
    best_iterations,
    climbed,
    require_gradients,
    weights_of,
)
from .climb import climb
from .comfy_bridge.decoding import BlockDecoder, vae_decode
from .comfy_bridge.forecast import forecast_line
from .comfy_bridge.graphs import SteadyProblem
from .comfy_bridge.loading import reward_patchers, run_model, run_vae
from .comfy_bridge.progress import Progress, send_text
from .comfy_bridge.refusals import refuse_wrong_vae
from .comfy_bridge.sampling import ComfyMap, NoiseOptimizationSampler, guided
from .comfy_bridge.scope import NormalInputs, gradient_scope, normal_copies
from .comfy_bridge.tiny_vae import tiny_vae
from .cost import planned_cost
from .live.start import changes_to_repeat, has_panel
from .parts import parts_lines, parts_of
from .redraw import FullQuality
from .request import TINY_VAE, Request, Result
from .resume import is_done, require_same_run
from .seeds import first_noise, screened, starting_noise
from .stock_run import stock_run

DOWNSCALE_RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What an empty LATENT says of itself; each is known to the ComfyUI that writes it."""


class _RunProblem(SteadyProblem):
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
    if request.iterations or screened(request):
        _require_climbable(request)
    latent = _model_latent(request.model, request.latent)
    refuse_wrong_vae(request.model, request.vae)
    sigmas = request.drawing.sigmas(request.eta)
    require_same_run(request, latent)
    changes_to_repeat(request, [term.info for term in request.terms])
    if request.iterations == 0 and request.resume is None and not screened(request):
        samples, trajectory = stock_run(request, latent, sigmas)
    else:
        trajectory = _resumed_or_begun(request, latent, sigmas)
        samples = trajectory.result_latents
        management = comfy.model_management
        samples = samples.to(management.intermediate_device(), management.intermediate_dtype())
    out = {key: value for key, value in request.latent.items() if "downscale_ratio" not in key}
    return Result({**out, "samples": samples}, vae_decode(request.vae, samples), trajectory)


def _resumed_or_begun(request: Request, latent: Tensor, sigmas: Tensor) -> Trajectory:
    if request.resume is None or not is_done(request):
        return _optimized(request, latent, sigmas)
    send_text(
        f"The run to resume has {request.resume.last} iterations already; its best is returned. "
        "Raise iterations to go on.",
        request.node_id,
    )
    weights = weights_of([term.info for term in request.terms])
    best = best_iterations(request.resume.terms, request.resume.records, weights)
    redraw = request.resume.redraw
    if redraw is not None and best == redraw.winners:
        return request.resume.with_redraw(redraw.judged(request.resume.terms, weights))
    if best == request.resume.best:
        return request.resume
    return replace(request.resume, best=best, redraw=None)


def _require_climbable(request: Request) -> None:
    if not climbed(request.terms):
        raise ValueError(
            "Every reward is only watched, so nothing pulls the picture anywhere. "
            "Give one reward of the mix a weight and switch its watch_only off."
        )
    if isinstance(request.gradient_estimator, Backpropagation):
        require_gradients(request.terms)


def _model_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        return samples
    ratios = {name: latent[name] for name in DOWNSCALE_RATIOS if name in latent}
    fixed = comfy.sample.fix_empty_latent_channels(model, samples, **ratios)
    channels = model.get_model_object("latent_format").latent_channels
    if fixed.shape[1] != channels:
        raise ValueError(
            f"The latent has {fixed.shape[1]} channels and this model works on {channels}. "
            "Connect an empty latent, or one encoded by this model's own VAE."
        )
    return fixed


def _optimized(request: Request, latent: Tensor, sigmas: Tensor) -> Trajectory:
    progress = Progress(request.node_id, previews=not has_panel())
    with gradient_scope():
        tiny = request.loop_decoder == TINY_VAE
        vae = tiny_vae(request.model) if tiny else run_vae(request.vae)
        companions = [vae.patcher, *reward_patchers(term.reward for term in request.terms)]
        pulls = request.differentiates_denoiser
        model = run_model(request.model, companions, pulls, request.graph_memory)
        trajectories: list[Trajectory] = []

        def drive(
            noise_map: ComfyMap,
            to_latent: Callable[[Tensor], Tensor],
            z: Tensor,
            draw: Callable[[int], Tensor],
        ) -> Tensor:
            steps = len(noise_map.steps)
            iterations = request.iterations - (request.resume.last if request.resume else 0)
            taken, means = request.loop_steps(steps), request.redraw_means(steps)
            graphs = noise_map.graphs.memory if pulls else None
            forecast = forecast_line(model, vae, z, iterations, taken, graphs)
            forecast = "\n".join([forecast, *parts_lines(request, steps)])
            if means:
                forecast += f"\nthen the best is drawn again with {means}"
            progress.plan(steps * planned_cost(request, iterations, steps), forecast)
            decoder = BlockDecoder(vae, to_latent, progress.call)
            problem = _RunProblem(noise_map.coarse(taken), decoder, request.terms)
            z, seeds = starting_noise(request, problem, z, draw, progress)

            def sample(noise: Tensor) -> Tensor:
                return to_latent(noise_map.forward(noise).final)

            quality = None
            if means:
                quality = FullQuality(
                    means=means,
                    sample=sample,
                    steps=steps,
                    first_noise=partial(first_noise, request, z, draw),
                    vae=partial(run_vae, request.vae),
                    device=request.model.load_device,
                    progress=progress,
                )
            parts = parts_of(request, problem, noise_map)
            trajectory, final = climb(
                request, problem, z, to_latent, progress, seeds, quality, parts
            )
            trajectories.append(trajectory)
            return final

        latent = normal_copies(latent)

        def prepare(seed: int) -> Tensor:
            return normal_copies(request.drawing.noise({**request.latent, "samples": latent}, seed))

        with guided(request.drawing.guider(), model, latent) as guider:
            guider.sample(
                prepare(request.seed),
                latent,
                NoiseOptimizationSampler(
                    request.eta,
                    progress.step,
                    drive,
                    prepare,
                    request.mode,
                    request.graph_memory,
                    progress.remark,
                ),
                normal_copies(sigmas),
                denoise_mask=normal_copies(request.latent.get("noise_mask")),
                disable_pbar=True,
                seed=request.seed,
            )
        return trajectories[0]
