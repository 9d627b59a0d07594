"""Runs of DNO Sampler on small models, and a way into the middle of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from comfyui_dno import rewards
from comfyui_dno.dno_core import NoRegularizer, Problem, Term
from comfyui_dno.rewards.base import PixelReward

from . import tiny

Work = Callable[[Problem, Tensor, Callable[[Tensor], Tensor]], Any]
"""What to do inside a run: with its problem, its noise, and the map from x_T to LATENT."""


def request(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A Request for two iterations of three steps, quick and without a regularizer."""
    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.request import Request

    batch = changes.pop("batch", 1)
    values = {
        "positive": tiny.conditioning(1, dtype),
        "negative": tiny.conditioning(2, dtype),
        "latent": {"samples": torch.zeros(batch, *tiny.LATENT)},
        "terms": (Term(rewards.create("brightness")),),
        "seed": 5,
        "steps": 3,
        "cfg": 3.0,
        "scheduler": "normal",
        "denoise": 1.0,
        "iterations": 2,
        "learning_rate": 0.02,
        "regularizer": NoRegularizer(),
    }
    values |= changes
    for name, make in (("model", tiny.sd_model), ("vae", tiny.vae)):
        if name not in values:
            values[name] = make(dtype)
    if "drawing" not in values:
        parts = {name: values[name] for name in KSamplerDrawing.__dataclass_fields__}
        values["drawing"] = KSamplerDrawing(**parts)
    return Request(**{k: v for k, v in values.items() if k in Request.__dataclass_fields__})


def flux_inputs(dtype: torch.dtype) -> dict[str, Any]:
    """What a request for a small Flux takes instead of SD's."""
    return {
        "model": tiny.flux_model(dtype),
        "vae": tiny.flux_vae(dtype),
        "positive": tiny.flux_conditioning(1, dtype),
        "negative": tiny.flux_conditioning(2, dtype),
        "latent": {"samples": torch.zeros(1, 16, 8, 8)},
        "cfg": 1.0,
    }


def stock(request: Any) -> dict[str, Any]:
    """The LATENT of the stock KSampler node for the same inputs."""
    import nodes

    drawing = request.drawing
    return nodes.common_ksampler(
        drawing.model,
        drawing.seed,
        drawing.steps,
        drawing.cfg,
        "euler" if request.eta == 0 else "euler_ancestral",
        drawing.scheduler,
        drawing.positive,
        drawing.negative,
        request.latent,
        denoise=drawing.denoise,
    )[0]


def inside(request: Any, work: Work) -> Any:
    """Do `work` in the middle of a run, where the optimization would be; return its result."""
    from comfyui_dno.nodes import optimization

    results: list[Any] = []

    def climb(
        request: Any, problem: Problem, z: Tensor, to_latent: Any, *rest: Any
    ) -> tuple[Any, Tensor]:
        results.append(work(problem, z, to_latent))
        return None, z[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimization, "climb", climb)
        latent = optimization._model_latent(request.model, request.latent)
        optimization._optimized(request, latent, request.drawing.sigmas(request.eta))
    return results[0]


def iteration_zero(request: Any) -> Tensor:
    """The latent that a run starts from: the forward pass of its unchanged noise."""
    return inside(
        request, lambda problem, z, to_latent: to_latent(problem.noise_map.forward(z).final)
    )


class KeepDouble(TorchFunctionMode):
    """ComfyUI rounds to float32 here and there; in this mode float64 stays float64.

    Central differences of a function that rounds to float32 show nothing below 1e-3.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wide = args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and function is Tensor.float:
            return args[0]
        if wide and function is Tensor.to:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def wavy_reward() -> Term:
    """A reward whose gradient differs from pixel to pixel and from picture to picture."""

    def score(images: Tensor) -> Tensor:
        ramp = torch.linspace(0.5, 2.0, images[0].numel(), dtype=images.dtype).view(images[0].shape)
        ramp = ramp.to(images.device)
        return (torch.sin(7 * images) * ramp + images.square() * ramp.flip(-1)).flatten(1).mean(1)

    return Term(PixelReward("wavy", "unit", 1.0, score))


def gradient_errors(request: Any, directions: int = 2, step: float = 1e-5) -> list[float]:
    """Relative errors of the run's gradient against central differences in float64.

    In random directions over all noises and images, and in one random direction of every single
    noise. Relative to the slope that a random direction has: |g| / sqrt(numbers in it).
    """

    def work(problem: Problem, z: Tensor, to_latent: Any) -> list[float]:
        z = z.double()
        weights = (1.0,) * len(problem.terms)
        evaluation = problem.evaluate(z, weights, differentiate=True)
        assert evaluation.saturated.max() == 0
        assert evaluation.image.std() > 0.01
        gradient = problem.gradient(z, evaluation, evaluation.image_gradient)
        generator = torch.Generator().manual_seed(99)
        errors = []
        for index in [*[None] * directions, *range(len(z))]:
            direction = torch.randn(z.shape, generator=generator, dtype=torch.float64)
            if index is not None:
                direction = direction * (torch.arange(len(z)) == index).view(-1, 1, 1, 1, 1)
            part = gradient if index is None else gradient[index]
            usual = float(part.norm() * direction.norm() / part.numel() ** 0.5)
            ahead = problem.evaluate(z + step * direction, weights).objective.sum()
            behind = problem.evaluate(z - step * direction, weights).objective.sum()
            slope = float((ahead - behind) / (2 * step))
            assert usual > 0
            errors.append(abs(slope - float((gradient * direction).sum())) / usual)
        return errors

    with KeepDouble():
        return inside(request, work)
