"""No waste, counted and not timed: everything is computed once, and nothing waits within a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno import rewards
from comfyui_dno.dno_core import Problem, Term
from comfyui_dno.rewards import Context

from . import tiny
from .ledger import Ledger, kept
from .runs import inside, request, stock

STEPS = 4


def masked() -> dict[str, Any]:
    samples = torch.ones(1, *tiny.LATENT)
    return {"latent": {"samples": samples, "noise_mask": torch.ones(1, 8, 8) / 2}}


def flow() -> dict[str, Any]:
    return {
        "model": tiny.flux_model(torch.float32),
        "vae": tiny.flux_vae(torch.float32),
        "positive": tiny.flux_conditioning(1, torch.float32),
        "negative": tiny.flux_conditioning(2, torch.float32),
        "latent": {"samples": torch.zeros(1, 16, 8, 8)},
    }


DRAWINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "ODE": lambda: {"eta": 0.0},
    "noise mask": masked,
    "flow": flow,
}


def passes(asked: Any) -> tuple[Ledger, Ledger, Ledger]:
    """Ledgers of the stock sampler, of a forward pass and of its sweep, for the same inputs."""
    with kept(asked) as plain:
        stock(asked)

    def work(problem: Problem, z: Tensor, to_latent: Any) -> tuple[Ledger, Ledger]:
        with kept(asked) as ahead:
            path = problem.noise_map.forward(z)
        with kept(asked) as back:
            problem.noise_map.pull(z, path, torch.ones_like(path.final))
        return ahead, back

    return plain, *inside(asked, work)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_forward_pass_waits_where_the_stock_sampler_waits_and_nowhere_else(drawing: str) -> None:
    plain, ahead, _ = passes(request(steps=STEPS, **DRAWINGS[drawing]()))
    assert ahead.story == plain.story == "C" * STEPS
    assert not ahead.waits_between_calls - plain.waits_between_calls


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_sweep_waits_for_nothing(drawing: str) -> None:
    plain, _, back = passes(request(steps=STEPS, **DRAWINGS[drawing]()))
    assert back.story == "C" * STEPS
    assert not back.waits_between_calls


def test_the_ledger_sees_the_waits_that_published_code_is_full_of() -> None:
    asked = request()
    x = torch.ones(3)

    def work(problem: Problem, z: Tensor, to_latent: Any) -> Ledger:
        denoise = type(problem.noise_map).denoise

        def wasteful(self: Any, *args: Any) -> Tensor:
            float(x.sum()), x.cpu(), x[x > 0], x.nonzero(), torch.equal(x, x)
            return denoise(self, *args)

        path = problem.noise_map.forward(z)
        with pytest.MonkeyPatch.context() as patch, kept(asked) as ledger:
            patch.setattr(type(problem.noise_map), "denoise", wasteful)
            problem.noise_map.pull(z, path, torch.ones_like(path.final))
        return ledger

    found = inside(asked, work).waits_between_calls
    each = len(inside(asked, lambda problem, *_: problem.noise_map.steps)) - 1
    names = ("a scalar", "cpu", "a mask as index", "nonzero", "equal")
    assert found == Counter(dict.fromkeys(names, each))


MODES: dict[str, tuple[dict[str, Any], int]] = {
    "exact": ({}, STEPS),
    "spread k": ({"gradient_mode": "spread k", "gradient_steps": 2}, 2),
    "spread k of fewer": ({"gradient_mode": "spread k", "gradient_steps": 9}, STEPS),
    "last k": ({"gradient_mode": "last k", "gradient_steps": 3}, 3),
    "last k of fewer": ({"gradient_mode": "last k", "gradient_steps": 9}, STEPS),
    "one step": ({"gradient_mode": "one step"}, 1),
    "linear": ({"gradient_mode": "linear"}, 0),
}
"""Each with the number of steps at which the denoiser is differentiated."""


@pytest.mark.parametrize("graphs", ["store", "recompute"])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_calls_decodes_and_scores_as_often_as_its_mode_asks_and_never_within_a_pass(
    mode: str, graphs: str
) -> None:
    """An iteration is T denoiser calls, a decode, a score, the decode's pull and the recomputed
    calls: none where graphs are stored, once the first iteration has shown how large they are.
    Positive and negative prompt go in one batch."""
    from comfyui_dno.nodes import optimization

    changes, differentiated = MODES[mode]
    asked = request(
        steps=STEPS, iterations=3, batch=2, check_gradient=False, graph_memory=graphs, **changes
    )
    with kept(asked) as ledger:
        optimization.run(asked)
    ahead = "C" * STEPS + "DS"
    back = "P" + "C" * differentiated
    later = back if graphs == "recompute" else "P"
    assert ledger.story == ahead + back + (ahead + later) * 2 + ahead + "V"
    assert set(ledger.batches) == {4}


@pytest.mark.parametrize("graphs", ["store", "recompute"])
@pytest.mark.parametrize(("mode", "differentiated"), [("exact", 2), ("spread k", 1)])
def test_while_only_late_noises_move_only_late_steps_are_called(
    mode: str, differentiated: int, graphs: str
) -> None:
    """Three of seven, and at the first of them no gradient is needed: no late noise is in yet."""
    from comfyui_dno.nodes import optimization

    changes = {"gradient_mode": mode, "gradient_steps": 3, "graph_memory": graphs}
    asked = request(steps=7, iterations=3, late_iterations=2, check_gradient=False, **changes)
    with kept(asked) as ledger:
        optimization.run(asked)
    whole, late, scored = "C" * 7, "C" * 3, "DSP"
    first = whole + scored + "C" * (7 if mode == "exact" else 3)
    back = "" if graphs == "store" else "C" * differentiated
    assert ledger.story == first + whole + scored + back + late + scored + back + late + "DSV"


def test_without_guidance_the_negative_prompt_is_not_computed() -> None:
    from comfyui_dno.nodes import optimization

    asked = request(steps=STEPS, iterations=1, batch=2, cfg=1.0)
    with kept(asked) as ledger:
        optimization.run(asked)
    assert set(ledger.batches) == {2}


def test_with_more_steps_an_iteration_waits_no_oftener_than_the_stock_sampler() -> None:
    """Beside the sampler itself, what an iteration waits for does not grow with the schedule."""
    iterations, plain = [], []
    for steps in (3, 6):
        short, long = (run_waits(steps=steps, iterations=count) for count in (1, 3))
        assert not short - long
        iterations.append(long - short)
        asked = request(steps=steps)
        with kept(asked) as ledger:
            stock(asked)
        plain.append(ledger.waits)
    few, many = iterations
    assert few
    for name in few | many:
        assert many[name] - few[name] <= 2 * (plain[1][name] - plain[0][name]), name


def run_waits(**changes: Any) -> Counter[str]:
    """What the host waits for in a run, the second of its kind."""
    from comfyui_dno.nodes import optimization

    asked = request(check_gradient=False, regularizer=None, **changes)
    optimization.run(asked)  # simulates what P(z) is held against, once for each size
    with kept(asked) as ledger:
        optimization.run(asked)
    return ledger.waits


def test_a_prompt_is_embedded_once_and_the_schedule_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.samplers

    from comfyui_dno.nodes import optimization

    calls: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return counted

    reward = rewards.create("clip_score", model="demo reward")
    monkeypatch.setattr(reward.tower, "embed_texts", counting("text", reward.tower.embed_texts))
    monkeypatch.setattr(reward.tower, "embed_images", counting("image", reward.tower.embed_images))
    schedule = counting("schedule", comfy.samplers.calculate_sigmas)
    monkeypatch.setattr(comfy.samplers, "calculate_sigmas", schedule)
    term = Term(reward, context=Context(prompts=("a lighthouse that no other test has drawn",)))
    asked = request(terms=(term,), iterations=3, batch=2)
    optimization.run(asked)
    assert calls == {"text": 1, "image": 4, "schedule": 1}
