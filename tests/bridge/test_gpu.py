"""What only a GPU shows: half precision, memory, dynamic VRAM. Run alone, with: -m gpu."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem

from . import tiny
from .runs import inside, iteration_zero, request, stock, wavy_reward

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """cuDNN's convolutions round float32 to 10 bits unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def gpu() -> torch.device:
    """ComfyUI's device; it has an index, and "cuda" is not equal to "cuda:0"."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def gpu_request(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A run on the GPU: the model in `dtype`, the VAE in float32."""
    model = changes.pop("model", None) or tiny.sd_model(dtype, device=gpu())
    vae = tiny.vae(torch.float32)
    assert vae.device == gpu()
    return request(torch.float32, model=model, vae=vae, **changes)


def gradient_of(asked: Any, z: Tensor) -> Tensor:
    def work(problem: Problem, drawn: Tensor, to_latent: Any) -> Tensor:
        assert drawn.device == asked.model.load_device
        here = z.to(drawn)
        evaluation = problem.evaluate(here, (1.0,), differentiate=True)
        return problem.gradient(here, evaluation, evaluation.image_gradient).cpu()

    return inside(asked, work)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-3), (torch.float16, 0.03), (torch.bfloat16, 0.2)]
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

    def peak(steps: int) -> int:
        """Bytes beyond what was in use before the run, and is after it."""
        before = used()
        torch.cuda.reset_peak_memory_stats()
        latent = {"samples": torch.zeros(2, tiny.LATENT[0], 32, 32)}
        asked = {"steps": steps, "iterations": 1, "check_gradient": False, "latent": latent}
        optimization.run(gpu_request(model=model, graph_memory="recompute", **asked))
        return torch.cuda.max_memory_allocated() - before

    model = tiny.sd_model(torch.float32, device=gpu())
    peak(4)  # libraries keep workspaces from their first call on
    before = used()
    few, many = peak(4), peak(24)
    assert few > 2**24  # a graph, and not the workspace alone
    assert many < 1.2 * few
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
