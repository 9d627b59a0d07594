"""Graphs that are no longer watched have the gradients of watched ones, whatever is patched in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from . import tiny
from .runs import inside, request, wavy_reward
from .test_memory import KEPT
from .test_offload import Buffers

SINGLE = torch.float32
WRITES = {"Flux", "ControlNet", "FreeU_V2", "buffers"}
"""What writes to tensors that autograd has saved; it must be watched for ever."""


def thrice(problem: Any, z: Tensor, to_latent: Any) -> tuple[list[Tensor], list[bool]]:
    """The gradient of one noise in three iterations, and whether the graphs were trusted after."""
    found, trusted = [], []
    for _ in range(3):
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        found.append(problem.gradient(z, evaluation, evaluation.image_gradient))
        trusted.append(problem.noise_map.graphs.care.trusts)
    return found, trusted


@pytest.mark.parametrize("policy", ["recompute", "store", "recompute blocks"])
@pytest.mark.parametrize("name", [*KEPT, "buffers"])
def test_no_bit_of_a_gradient_depends_on_whether_it_was_watched(
    name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {"model": tiny.sd_model(SINGLE)} if name == "buffers" else KEPT[name]()
    if name == "buffers":
        import comfy.ops

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", Buffers().cast)
        for module in made["model"].model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
    asked = request(SINGLE, graph_memory=policy, **{"terms": (wavy_reward(),), **made})
    found, trusted = inside(asked, thrice)
    assert found[0].abs().max() > 0
    assert all(torch.equal(each, found[0]) for each in found[1:])
    assert trusted == [policy != "recompute blocks" and name not in WRITES] * 3
