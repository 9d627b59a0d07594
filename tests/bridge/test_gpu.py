"""What only a GPU shows: half precision, memory, dynamic VRAM. Run alone, with: -m gpu."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem

from . import tiny
from .runs import inside, iteration_zero, request, stock, wavy_reward

pytestmark = pytest.mark.gpu


def gpu_request(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A run on the GPU: the model in `dtype`, the VAE in float32."""
    model = changes.pop("model", None) or tiny.sd_model(dtype, device="cuda")
    vae = tiny.vae(torch.float32)
    assert vae.device.type == "cuda"
    return request(torch.float32, model=model, vae=vae, **changes)


def gradient_of(asked: Any, z: Tensor) -> Tensor:
    def work(problem: Problem, drawn: Tensor, to_latent: Any) -> Tensor:
        assert drawn.device == asked.model.load_device
        here = z.to(drawn)
        evaluation = problem.evaluate(here, (1.0,), differentiate=True)
        return problem.gradient(here, evaluation, evaluation.image_gradient).cpu()

    return inside(asked, work)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.3)]
)
def test_the_gradient_is_that_of_the_cpu_in_float32(dtype: torch.dtype, limit: float) -> None:
    with torch.inference_mode(False):
        z = torch.randn(3, 1, *tiny.LATENT)
    terms = (wavy_reward(),)
    expected = gradient_of(gpu_request(terms=terms, model=tiny.sd_model(torch.float32)), z)
    got = gradient_of(gpu_request(dtype, terms=terms), z)
    assert (got - expected).norm() < limit * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_run_passes_its_own_check_and_starts_from_ksamplers_picture(dtype: torch.dtype) -> None:
    from comfyui_dno.nodes import optimization

    asked = gpu_request(dtype, batch=2)
    expected = stock(asked)["samples"].cpu().float()
    zero = iteration_zero(asked).cpu().float()
    assert (zero - expected).norm() < 0.02 * expected.norm()
    trajectory = optimization.run(asked).trajectory
    assert len(trajectory.records) == 3
    assert trajectory.best_noise.device.type == "cpu"


def test_memory_does_not_grow_with_the_steps_and_is_given_back() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    def used() -> int:
        management.unload_all_models()
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    vae_and_model = gpu_request()
    before = used()
    peaks = []
    for steps in (4, 24):
        torch.cuda.reset_peak_memory_stats()
        optimization.run(
            gpu_request(model=vae_and_model.model, steps=steps, iterations=1, check_gradient=False)
        )
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.2 * peaks[0]
    del vae_and_model
    assert used() <= before + 2**20


def test_under_dynamic_vram_the_demo_climbs_and_passes_its_check() -> None:
    """The weights are paged; the run must use delegates, or its gradient check would stop it."""
    from comfyui_dno.tests.harness import ROOT, failure, start_server

    workflow = json.loads((ROOT / "workflows/api/first_light.json").read_text(encoding="utf-8"))
    (node,) = [key for key, data in workflow.items() if data["class_type"] == "DNO_Sampler"]
    workflow[node]["inputs"] |= {"iterations": 5, "check_gradient": True}
    with torch.inference_mode(False), start_server(False, ("--enable-dynamic-vram",)) as server:
        entry = server.run(workflow, timeout=600)
        assert failure(entry) is None
        assert "DynamicVRAM support detected and enabled" in server.log_text()
        numbers = entry["outputs"][node]["dno"][0]
    assert numbers["iterations"] == 5
    assert numbers["reward_after"] > numbers["reward_before"]
