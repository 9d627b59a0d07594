"""Models under TorchCompileModel: the gradient is that of the model that was compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .runs import iteration_zero, stock, wavy_reward
from .test_families import FAMILIES, asked
from .test_offload import gradient_of


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Any) -> Any:
    """By ComfyUI's own node; aot_eager traces forward and backward and generates no code."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "aot_eager").args[0]


def test_a_compiled_model_has_the_gradient_and_the_picture_of_the_plain_one() -> None:
    from comfyui_dno.nodes import optimization

    def run(model: Any) -> Any:
        terms = (wavy_reward(),)
        return asked("Flux dev", torch.float32, steps=2, iterations=1, model=model, terms=terms)

    model = FAMILIES["Flux dev"](torch.float32)["model"]
    plain, through = run(model), run(compiled(model))
    got = gradient_of(through)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    expected = gradient_of(plain)
    assert (got - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(iteration_zero(through), stock(plain)["samples"])
    assert optimization.run(through).trajectory.meta["gradient_checked"]
