"""0 iterations: the stock sampler's picture, scored."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
from torch import Tensor

from ..dno_core import (
    Iteration,
    Problem,
    Recorder,
    Settings,
    Trajectory,
    Typicality,
    weights_of,
)
from .comfy_bridge.decoding import vae_decode
from .comfy_bridge.loading import reward_patchers
from .comfy_bridge.sampling import draw_noise, model_steps, stock_sampler
from .comfy_bridge.scope import gradient_scope, normal_copies
from .request import FULL_VAE, Request, meta


def stock_run(request: Request, latent: Tensor, sigmas: Tensor) -> tuple[Tensor, Trajectory]:
    """0 iterations: ComfyUI's own sampler object on the untouched model, then one scoring."""
    noise = request.drawing.noise({**request.latent, "samples": latent}, request.seed)
    samples = request.drawing.guider().sample(
        noise,
        latent,
        stock_sampler(request.eta),
        sigmas,
        denoise_mask=request.latent.get("noise_mask"),
        disable_pbar=True,
        seed=request.seed,
    )
    management = comfy.model_management
    samples = samples.to(management.intermediate_device(), management.intermediate_dtype())
    with gradient_scope():
        model_sampling = request.model.get_model_object("model_sampling")
        steps = model_steps(model_sampling, normal_copies(sigmas), request.eta)
        device = request.model.load_device
        z = draw_noise(normal_copies(noise).to(device), steps, request.seed)
        image = normal_copies(vae_decode(request.vae, samples)).movedim(-1, 1).float()
        patchers = reward_patchers(term.reward for term in request.terms)
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
            steps=len(steps),
        )
        recorder.add(iteration, samples.float())
        full = replace(request, optimize_steps=0, loop_decoder=FULL_VAE)
        return samples, recorder.finish("0 iterations asked for", meta=meta(full))
