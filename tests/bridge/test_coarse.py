"""Fewer steps in the loop: the stock sampler on a subset of the sigmas, for the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import (
    CoarseMap,
    GradientMode,
    ModalMap,
    WideMap,
    coarse_sigmas,
    noise_count,
)

from . import tiny
from .runs import KeepDouble, flux_inputs, inside, request, stock, wavy_reward

STEPS, TAKEN = 7, 3
LIMIT = 1e-5
DOUBLE = torch.float64


def coarse_request(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return request(dtype, **{"steps": STEPS, "optimize_steps": TAKEN, **changes})


def masked() -> dict[str, Any]:
    picture = 3 * torch.randn(1, *tiny.LATENT, generator=torch.Generator().manual_seed(8))
    mask = torch.linspace(0, 1, 8).expand(1, 8, 8).clone()
    return {"latent": {"samples": picture, "noise_mask": mask}, "denoise": 0.7}


def kind(name: str, dtype: torch.dtype) -> dict[str, Any]:
    if name == "flux":
        return flux_inputs(dtype)
    return masked() if name == "masked" else {}


def stock_run(asked: Any, noises: Tensor, sigmas: Tensor) -> Tensor:
    """The stock sampler object on these sigmas, told to inject these noises."""
    import comfy.sample
    import comfy.samplers

    following = iter(noises[1:])
    options = {"eta": asked.eta, "noise_sampler": lambda *_: next(following)}
    name, options = ("euler", {}) if asked.eta == 0 else ("euler_ancestral", options)
    drawing = asked.drawing
    return comfy.sample.sample_custom(
        drawing.model,
        noises[0],
        drawing.cfg,
        comfy.samplers.ksampler(name, options),
        sigmas,
        drawing.positive,
        drawing.negative,
        asked.latent["samples"],
        noise_mask=asked.latent.get("noise_mask"),
        seed=drawing.seed,
    )


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", ["plain", "masked", "flux"])
def test_the_loop_draws_what_the_stock_sampler_draws_with_those_sigmas_and_noises(
    name: str, eta: float
) -> None:
    asked = coarse_request(eta=eta, **kind(name, torch.float32))

    def work(problem: Any, z: Tensor, to_latent: Any) -> tuple[Tensor, ...]:
        noise_map = problem.noise_map
        assert isinstance(noise_map, CoarseMap) and len(noise_map.steps) == TAKEN
        assert len(z) == (STEPS if eta else 1), "the noise stays that of the full schedule"
        noises = noise_map.coarsening.coarse(z)
        assert len(noises) == noise_count(noise_map.steps)
        return noises, to_latent(noise_map.forward(z).final)

    noises, drawn = inside(asked, work)
    sigmas = coarse_sigmas(asked.drawing.sigmas(eta), TAKEN)
    expected = stock_run(asked, noises, sigmas)
    assert expected.std() > 0
    assert torch.equal(drawn, expected)


def slopes(asked: Any, mode: GradientMode | None = None) -> tuple[list[float], Tensor]:
    """Errors of the gradient against central differences, in random directions over all noises;
    and the gradient's norm noise by noise."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> tuple[list[float], Tensor]:
        z, step = z.double(), 1e-5
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        gradient = problem.gradient(z, evaluation, evaluation.image_gradient)
        assert gradient.shape == z.shape
        generator = torch.Generator().manual_seed(99)
        errors = []
        for _ in range(3):
            direction = torch.randn(z.shape, generator=generator, dtype=DOUBLE)
            usual = float(gradient.norm() * direction.norm() / gradient.numel() ** 0.5)
            ahead = problem.evaluate(z + step * direction, (1.0,)).objective.sum()
            behind = problem.evaluate(z - step * direction, (1.0,)).objective.sum()
            slope = float((ahead - behind) / (2 * step))
            errors.append(abs(slope - float((gradient * direction).sum())) / usual)
        return errors, gradient.flatten(1).norm(dim=1)

    with KeepDouble():
        return inside(asked, work)


@pytest.mark.parametrize("graph_memory", ["store", "recompute"])
@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("name", ["plain", "masked", "flux"])
def test_the_gradient_in_the_full_noise_is_the_slope(
    name: str, eta: float, graph_memory: str
) -> None:
    changes = {"eta": eta, "graph_memory": graph_memory, **kind(name, DOUBLE)}
    errors, norms = slopes(coarse_request(DOUBLE, terms=(wavy_reward(),), **changes))
    assert max(errors) < LIMIT, errors
    if eta:
        unused = torch.arange(STEPS) > 5  # kept: 0, 2, 5 and the end
        assert not norms[unused].any() and bool((norms[~unused] > 0).all())


def test_one_step_and_a_schedule_that_ends_above_0_have_the_right_gradient_too() -> None:
    @dataclass(frozen=True)
    class Unfinished:
        inner: Any

        def sigmas(self, eta: float) -> Tensor:
            return self.inner.sigmas(eta)[:-1]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    asked = coarse_request(DOUBLE, terms=(wavy_reward(),))
    for drawing, taken, used in (
        (asked.drawing, 1, [True] + [False] * (STEPS - 1)),
        (Unfinished(asked.drawing), 1, [True] * STEPS),
        (Unfinished(asked.drawing), 3, [True] * STEPS),
    ):
        changed = coarse_request(
            DOUBLE, terms=(wavy_reward(),), drawing=drawing, optimize_steps=taken
        )
        errors, norms = slopes(changed)
        assert max(errors) < LIMIT, errors
        assert (norms > 0).tolist() == used


def test_after_runs_with_fewer_steps_the_full_schedule_still_gives_ksamplers_picture() -> None:
    """Also with hooks whose strength falls as the steps pass, and with patches that roll dice."""
    from comfy_extras.nodes_tomesd import TomePatchModel

    from comfyui_dno.nodes.comfy_bridge.sampling import ComfyMap

    model = TomePatchModel.execute(tiny.sd_model(torch.float32), 0.5)[0]
    hooks = tiny.hook_lora(model, keyframes=True)
    asked = request(
        model=model,
        steps=STEPS,
        positive=tiny.conditioning(1, torch.float32, hooks=hooks),
        negative=tiny.conditioning(2, torch.float32, hooks=hooks),
    )

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[Tensor]:
        full: ComfyMap = problem.noise_map
        coarse = full.coarse(TAKEN)
        finals = [full.forward(z).final]
        short = [coarse.forward(z) for _ in range(2)]
        assert torch.equal(short[0].final, short[1].final)
        coarse.pull(z, short[1], torch.ones_like(short[1].final))
        again = full.coarse(TAKEN).forward(z).final
        assert torch.equal(again, short[0].final)
        finals.append(full.forward(z).final)
        return [to_latent(final) for final in finals]

    expected = stock(asked)["samples"]
    for drawn in inside(asked, work):
        assert torch.equal(drawn, expected)


def test_patches_are_told_the_schedule_that_is_run() -> None:
    told: list[Tensor] = []

    def wrapper(apply: Any, given: dict[str, Any]) -> Tensor:
        told.append(given["c"]["transformer_options"]["sample_sigmas"])
        return apply(given["input"], given["timestep"], **given["c"])

    model = tiny.sd_model(torch.float32)
    model.set_model_unet_function_wrapper(wrapper)
    asked = request(model=model, steps=STEPS)

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[list[Tensor]]:
        found = []
        for noise_map in (problem.noise_map, problem.noise_map.coarse(TAKEN), problem.noise_map):
            told.clear()
            path = noise_map.forward(z)
            noise_map.pull(z, path, torch.ones_like(path.final))
            found.append(list(told))
        return found

    full = asked.drawing.sigmas(1.0)
    for heard, sigmas in zip(
        inside(asked, work), (full, coarse_sigmas(full, TAKEN), full), strict=True
    ):
        assert heard and all(torch.equal(each, sigmas) for each in heard)


def test_as_many_steps_as_there_are_or_more_leave_the_map_as_it_is() -> None:
    def work(problem: Any, z: Tensor, to_latent: Any) -> list[bool]:
        return [problem.noise_map.coarse(count) is problem.noise_map for count in (6, 7, 8, 99)]

    assert inside(request(steps=STEPS), work) == [False, True, True, True]


def test_noises_run_side_by_side_on_the_short_schedule_give_what_each_gives_alone() -> None:
    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        noise_map = problem.noise_map
        assert isinstance(noise_map, WideMap) and noise_map.probe_room(z, 2) == 2
        pair = [z.double(), z.double().flip(0)]
        wide = noise_map.forward(torch.cat(pair, 1)).final
        alone = torch.cat([noise_map.forward(each).final for each in pair])
        torch.testing.assert_close(wide, alone, rtol=1e-9, atol=1e-9)

    inside(coarse_request(DOUBLE, batch=2), work)


@pytest.mark.parametrize("optimize_steps", [0, TAKEN])
def test_a_biased_mode_recomputes_its_own_steps_alone_and_never_the_rest(
    optimize_steps: int,
) -> None:
    taken = optimize_steps or STEPS
    modes = (GradientMode(), GradientMode("last k", k=2), GradientMode("one step", at=0.0))

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[list[int]]:
        noise_map = problem.noise_map
        inner = noise_map.inner if isinstance(noise_map, CoarseMap) else noise_map
        costs: list[int] = []
        inner._on_call = costs.append
        assert isinstance(noise_map, ModalMap) and noise_map.mode.name == "exact"
        path = noise_map.forward(z)
        v = torch.randn(path.final.shape, generator=torch.Generator().manual_seed(1))
        found, gradients = [], []
        for mode in (*modes, GradientMode("linear")):
            costs.clear()
            gradients.append(noise_map.in_mode(mode).pull(z, path, v))
            found.append(list(costs))
        last_noises = [noise for noise, row in enumerate(gradients[0]) if row.any()][-2:]
        assert torch.equal(gradients[0][last_noises], gradients[1][last_noises])
        assert not torch.equal(gradients[0][0], gradients[3][0])
        return found

    asked = request(steps=STEPS, optimize_steps=optimize_steps)
    assert inside(asked, work) == [[3] * taken, [3] * 2, [3], []]


def test_what_a_mask_holds_is_not_pulled_at_by_a_cheap_gradient() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    latent = {**masked()["latent"], "noise_mask": mask}

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        path = problem.noise_map.forward(z)
        v = torch.ones_like(path.final)
        for mode in (GradientMode(), GradientMode("one step"), GradientMode("linear")):
            found = problem.noise_map.in_mode(mode).pull(z, path, v)[1:]
            assert not found[..., :4].any() and found[..., 4:].any(), mode

    inside(request(steps=STEPS, latent=latent), work)
