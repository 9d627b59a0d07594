"""The run's own check finds a gradient that something on the model made wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import GradientMismatch

from . import tiny
from .runs import request
from .sabotage import Calls, ScaledGradient


def detached(out: Tensor) -> Tensor:
    return out.detach()


class OverwritesWeights(Calls):
    """Changes a weight behind autograd's back once its output was computed, and puts it back at
    the next call: as weights do that live in buffers which are used again."""

    def __call__(self, apply_model: Any, given: dict[str, Any]) -> Tensor:
        weight = self.model.model.diffusion_model.input_blocks[0][0].weight
        if self.count:
            weight.data.div_(2)
        self.count += 1
        out = apply_model(given["input"], given["timestep"], **given["c"])
        weight.data.mul_(2)
        return out


SABOTAGE = {
    "15 % too large": lambda model: Calls(model, None, ScaledGradient.apply).model,
    "detached": lambda model: Calls(model, None, detached).model,
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_gradient_made_wrong_is_found(name: str) -> None:
    from comfyui_dno.nodes import optimization

    model = SABOTAGE[name](tiny.sd_model(torch.float32))
    with pytest.raises(GradientMismatch, match="one by one"):
        optimization.run(request(model=model))


def test_weights_overwritten_after_every_call_do_not_make_the_gradient_wrong() -> None:
    """As hook LoRAs and cast buffers do; what was saved is kept as it was."""
    from comfyui_dno.nodes import optimization

    model = OverwritesWeights(tiny.sd_model(torch.float32)).model
    trajectory = optimization.run(request(model=model)).trajectory
    assert len(trajectory.records) > 1


@pytest.mark.parametrize("name", SABOTAGE)
def test_the_check_can_be_switched_off(name: str) -> None:
    from comfyui_dno.nodes import optimization

    model = SABOTAGE[name](tiny.sd_model(torch.float32))
    result = optimization.run(request(model=model, iterations=1, check_gradient=False))
    assert len(result.trajectory.records) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_right_gradient_passes(dtype: torch.dtype, batch: int) -> None:
    from comfyui_dno.nodes import optimization

    asked = request(model=tiny.sd_model(dtype), iterations=1, batch=batch)
    assert len(optimization.run(asked).trajectory.records) == 2
