"""The gradient mode "spread k" on ComfyUI's models: with noise masks, few steps, kept graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import EXACT, GradientMode

from .runs import flux_inputs, inside, request
from .test_coarse import masked

STEPS = 5
HELD = {1: [4] * 5, 2: [2, 2, 2, 4, 4], 3: [1, 1, 3, 3, 4]}
"""By k: of every step the one whose products J^T v it takes."""


def kind(name: str) -> dict[str, Any]:
    inputs = {"plain": dict, "masked": masked, "flux": lambda: flux_inputs(torch.float32)}
    return inputs[name]()


def products(function: Any, inputs: list[Tensor], v: Tensor) -> list[Tensor]:
    """J^T v for every input, zeros where it is not used."""
    with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        leaves = [each.detach().requires_grad_() for each in inputs]
        found = torch.autograd.grad(function(*leaves), leaves, v, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def by_hand(noise_map: Any, z: Tensor, latents: Any, v: Tensor, held: list[int]) -> Tensor:
    steps, dz, found = noise_map.steps, torch.zeros_like(z), {}
    for i in reversed(range(len(steps))):
        step, source = steps[i], held[i]
        if source == i:
            found[i] = products(
                lambda x, z0, step=step: noise_map.denoise(x, step.sigma, z0), [latents[i], z[0]], v
            )
        jv, direct = found[source]
        if step.noise is not None:
            dz[step.noise] = step.c * v
        dz[0] += step.b * direct * (step.sigma / steps[source].sigma)
        v = step.a * v + step.b * jv
    dz[0] += products(noise_map.start, [z[0]], v)[0]
    return dz


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "masked", "flux"])
def test_what_a_step_holds_is_that_of_the_next_one_that_is_differentiated(
    name: str, k: int
) -> None:
    asked = request(steps=STEPS, gradient_mode="spread k", gradient_steps=k, batch=2, **kind(name))

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        noise_map = problem.noise_map
        assert noise_map.mode == GradientMode("spread k", k) and len(noise_map.steps) == STEPS
        path = noise_map.forward(z)
        v = torch.randn(path.final.shape, generator=torch.Generator().manual_seed(1))
        expected = by_hand(noise_map, z, path.latents, v, HELD[k])
        found = noise_map.pull(z, path, v)
        assert (found - expected).norm() < 1e-5 * expected.norm()
        exact = noise_map.in_mode(EXACT).pull(z, path, v)
        assert (found - exact).norm() > 1e-3 * exact.norm()

    inside(asked, work)


def test_what_a_mask_holds_is_not_pulled_at() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    latent = {**masked()["latent"], "noise_mask": mask}

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        path = problem.noise_map.forward(z)
        found = problem.noise_map.pull(z, path, torch.ones_like(path.final))[1:]
        assert not found[..., :4].any() and found[..., 4:].any()

    inside(request(steps=STEPS, latent=latent, gradient_mode="spread k", gradient_steps=2), work)


@pytest.mark.parametrize("k", [2, 9])
def test_kept_graphs_and_those_made_again_give_the_same_run(k: int) -> None:
    from comfyui_dno.nodes import optimization

    runs = []
    for graphs in ("store", "recompute"):
        changes = {"gradient_mode": "spread k", "gradient_steps": k, "graph_memory": graphs}
        asked = request(steps=4, optimize_steps=3, finish_iterations=2, iterations=3, **changes)
        runs.append(optimization.run(asked).trajectory)
    assert [record.steps for record in runs[0].records] == [3, 4, 4, 4]
    assert torch.equal(runs[0].last_noise, runs[1].last_noise)
    assert "gradient_cosine" in runs[0].meta if k == 2 else "gradient_cosine" not in runs[0].meta
