"""The late steps by themselves on ComfyUI's models: the whole map's result and its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import EXACT, GradientMode, LateMap, Problem, late_begin

from . import tiny
from .runs import KeepDouble, flux_inputs, inside, request, stock, wavy_reward
from .sabotage import Calls
from .test_coarse import masked

STEPS = 7
BEGIN = late_begin(STEPS)
HELD, LATE = BEGIN + 1, STEPS - BEGIN
"""Noises of x_4, and steps from there on."""


def hooked() -> dict[str, Any]:
    """Hook LoRAs whose strength changes before the late steps begin and while they go on."""
    import comfy.hooks

    model = tiny.sd_model(torch.float32)
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.2, 0.4), (1.5, 0.8)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    prompts = {
        name: tiny.conditioning(seed, torch.float32, hooks=hooks)
        for seed, name in ((1, "positive"), (2, "negative"))
    }
    return {"model": model, **prompts}


def dicing() -> dict[str, Any]:
    from comfy_extras.nodes_tomesd import TomePatchModel

    return {"model": TomePatchModel.execute(tiny.sd_model(torch.float32), 0.5)[0]}


KINDS: dict[str, Any] = {
    "plain": lambda: {"eta": 1.0},
    "eta 0.4": lambda: {"eta": 0.4},
    "flux": lambda: flux_inputs(torch.float32),
    "masked": masked,
    "masked flux": lambda: {
        **flux_inputs(torch.float32),
        "latent": {**masked()["latent"], "samples": torch.ones(1, 16, 8, 8)},
    },
    "hooks": hooked,
    "dice": dicing,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def moved(z: Tensor, held: int = HELD, seed: int = 3) -> Tensor:
    other = z.clone()
    change = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
    other[held:] += 0.3 * change[held:]
    return other


def equal(path: Any, other: Any) -> bool:
    latents = zip(path.latents, other.latents, strict=True)
    return torch.equal(path.final, other.final) and all(torch.equal(a, b) for a, b in latents)


@kinds
def test_going_on_from_a_latent_gives_the_whole_runs_picture(kind: str) -> None:
    inputs = KINDS[kind]()
    calls = Calls(inputs.get("model") or tiny.sd_model(torch.float32), -1)
    asked = request(**{"steps": STEPS, "seed": 11, **inputs, "model": calls.model})
    first = stock(asked)["samples"] if asked.eta == 1 else None

    def work(problem: Problem, z: Tensor, to_latent: Any) -> None:
        whole: Any = problem.noise_map
        late = LateMap(whole, BEGIN)
        assert late.held == HELD == len(z) - LATE + 1 and len(whole.steps) == STEPS
        noises = [z, *(moved(z, seed=seed) for seed in range(2)), moved(z, 0), moved(z, HELD - 1)]
        expected = [whole.forward(noise) for noise in noises]
        assert first is None or torch.equal(to_latent(expected[0].final), first)
        assert not equal(expected[1], expected[2])
        calls.count, per_run = 0, len(whole.steps)
        whole.forward(z)
        per_call, calls.count = calls.count // per_run, 0
        for noise, path, steps in zip(
            noises, expected, [STEPS, LATE, LATE, STEPS, STEPS], strict=True
        ):
            assert equal(late.forward(noise), path)
            assert calls.count == steps * per_call, "and none of the steps before"
            calls.count = 0
        again = late.forward_to_pull(noises[-1])
        assert equal(again, expected[-1])
        late.pull(noises[-1], again, torch.ones_like(again.final))
        assert equal(late.forward(noises[-1]), expected[-1]), "also after a sweep"
        assert equal(whole.forward(noises[1]), expected[1]), "and the whole map is what it was"

    inside(asked, work)
    assert first is None or torch.equal(stock(asked)["samples"], first)


@pytest.mark.parametrize(
    ("kind", "graphs"),
    [
        *((kind, "store") for kind in KINDS),
        ("plain", "recompute"),
        ("masked flux", "recompute"),
        ("masked", "recompute blocks"),
    ],
)
def test_the_late_noises_have_the_whole_maps_gradient(kind: str, graphs: str) -> None:
    asked = request(steps=STEPS, graph_memory=graphs, **KINDS[kind]())

    def work(problem: Problem, z: Tensor, to_latent: Any) -> None:
        whole: Any = problem.noise_map
        late = LateMap(whole, BEGIN)
        for mode in (EXACT, GradientMode("spread k", 3)):
            whole, late = whole.in_mode(mode), late.in_mode(mode)
            for noise in (z, moved(z)):
                path = whole.forward_to_pull(noise)
                v = torch.randn(path.final.shape, generator=torch.Generator().manual_seed(1))
                expected = whole.pull(noise, path, v)
                path = late.forward_to_pull(noise)
                found = late.pull(noise, path, v)
                assert torch.equal(found[HELD:], expected[HELD:]) and found[HELD:].any()
                assert expected[:HELD].any() and not found[:HELD].any()
                assert not path.graphs

    inside(asked, work)


@pytest.mark.parametrize("mode", [EXACT, GradientMode("spread k", 3)])
def test_stored_graphs_are_those_of_the_steps_that_are_differentiated(mode: GradientMode) -> None:
    calls = Calls(tiny.sd_model(torch.float32), -1)
    asked = request(model=calls.model, steps=STEPS, graph_memory="store")
    exact_at = mode.exact_at(STEPS)
    used = {i for i in range(BEGIN + 1, STEPS) if exact_at is None or i in exact_at}

    def work(problem: Problem, z: Tensor, to_latent: Any) -> None:
        late = LateMap(problem.noise_map, BEGIN).in_mode(mode)  # type: ignore[arg-type]
        late.pull(z, late.forward_to_pull(z), torch.ones_like(z[0]))  # measures them
        late = replace(late, _early=None, _latents=())
        for noise, steps in ((z, STEPS), (moved(z), LATE)):
            calls.count = 0
            path = late.forward_to_pull(noise)
            assert set(path.graphs) == used and calls.count == steps
            late.pull(noise, path, torch.ones_like(path.final))
            assert calls.count == steps

    inside(asked, work)


@pytest.mark.parametrize("kind", ["plain", "flux", "masked"])
def test_the_late_gradient_is_the_slope_of_the_whole_run(kind: str) -> None:
    double = torch.float64
    inputs = {"plain": dict, "flux": lambda: flux_inputs(double), "masked": masked}[kind]()
    asked = request(double, steps=STEPS, terms=(wavy_reward(),), **inputs)
    step = 1e-5

    def work(problem: Problem, z: Tensor, to_latent: Any) -> list[float]:
        late = replace(problem, noise_map=LateMap(problem.noise_map, BEGIN))  # type: ignore[arg-type]
        late.evaluate(z.double(), (1.0,))
        z = moved(z.double())
        evaluation = late.evaluate(z, (1.0,), differentiate=True)
        assert evaluation.saturated.max() == 0 and evaluation.image.std() > 0.01
        gradient = late.gradient(z, evaluation, evaluation.image_gradient)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(99)
        errors = []
        for index in (None, None, *range(HELD, len(z))):
            places = slice(HELD, None) if index is None else slice(index, index + 1)
            direction = torch.zeros_like(z)
            shape = direction[places].shape
            direction[places] = torch.randn(shape, generator=generator, dtype=double)
            part = gradient[places]
            usual = float(part.norm() * direction.norm() / part.numel() ** 0.5)
            ahead, behind = (
                float(problem.evaluate(z + sign * step * direction, (1.0,)).objective.sum())
                for sign in (1, -1)
            )
            slope = (ahead - behind) / (2 * step)
            errors.append(abs(slope - float((gradient * direction).sum())) / usual)
        return errors

    with KeepDouble():
        errors = inside(asked, work)
    assert len(errors) == 4 and max(errors) < 1e-5, errors
