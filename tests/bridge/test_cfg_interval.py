"""What guidance costs: cond and uncond in one call, and no uncond where cfg is 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem

from .runs import inside, iteration_zero, request, stock, wavy_reward
from .test_families import asked, right_gradient

STEPS = 4


def overridden(model: Any, cfg: float, start: float, end: float) -> Any:
    """By ComfyUI's own node CFG Override."""
    from comfy_extras.nodes_custom_sampler import CFGOverride

    return CFGOverride.execute(model, cfg, start, end).args[0]


def rows(request: Any) -> tuple[list[int], list[int]]:
    """The batch of every call of the model, in a forward pass and in the sweep."""
    calls: list[int] = []

    def noting(apply_model: Any, given: dict[str, Any]) -> Tensor:
        calls.append(len(given["input"]))
        return apply_model(given["input"], given["timestep"], **given["c"])

    request.model.set_model_unet_function_wrapper(noting)

    def work(problem: Problem, z: Tensor, to_latent: Any) -> int:
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        passed = len(calls)
        problem.gradient(z, evaluation, evaluation.image_gradient)
        return passed

    forward = inside(request, work)
    return calls[:forward], calls[forward:]


def with_override(dtype: torch.dtype, cfg: float, start: float, end: float, **changes: Any) -> Any:
    """SD1.5 at cfg 3 in four steps, with another cfg in the interval."""
    plain = request(dtype)
    model = overridden(plain.model, cfg, start, end)
    return request(dtype, model=model, vae=plain.vae, steps=STEPS, scheduler="simple", **changes)


def test_cond_and_uncond_go_through_the_model_in_one_call_a_step() -> None:
    assert rows(request(steps=STEPS)) == ([2] * STEPS, [2] * STEPS)
    assert rows(request(steps=STEPS, batch=3)) == ([6] * STEPS, [6] * STEPS)


def test_at_cfg_1_uncond_is_not_computed() -> None:
    assert rows(request(steps=STEPS, cfg=1.0)) == ([1] * STEPS, [1] * STEPS)


def test_inside_the_interval_uncond_is_not_computed() -> None:
    forward, sweep = rows(with_override(torch.float32, 1.0, 0.4, 1.0))
    assert forward == [2, 2, 1, 1]
    assert sweep == [1, 1, 2, 2]


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_an_interval_has_the_right_gradient(cfg: float) -> None:
    right_gradient(with_override(torch.float64, cfg, 0.4, 1.0, terms=(wavy_reward(),)))


def test_a_run_with_an_interval_starts_from_ksamplers_picture() -> None:
    changed = with_override(torch.float32, 1.0, 0.4, 1.0)
    assert torch.equal(iteration_zero(changed), stock(changed)["samples"])
    plain = request(steps=STEPS, scheduler="simple")
    assert not torch.equal(iteration_zero(plain), iteration_zero(changed))


def test_an_interval_on_flux_has_the_right_gradient() -> None:
    plain = asked("Flux dev", torch.float64, terms=(wavy_reward(),), cfg=2.0)
    model = overridden(plain.model, 1.0, 0.0, 0.5)
    right_gradient(asked("Flux dev", torch.float64, terms=plain.terms, cfg=2.0, model=model))
