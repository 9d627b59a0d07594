"""Nothing of the user's is changed, and every mode is restored, whatever happens in a run."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyui_dno.dno_core import GradientMismatch, NonFinite, Term

from . import tiny
from .fingerprint import of_model, of_request
from .runs import request, stock
from .sabotage import CALLS, Calls, ScaledGradient, interrupt, nan, out_of_memory


def full_request(**changes: Any) -> Any:
    """A run with a LoRA, chained ControlNets, a mask, hooks and a timestep range."""
    model = changes.pop("model", None) or tiny.sd_model(torch.float32)
    control = tiny.control_net(torch.float32, strength=0.7)
    control.set_previous_controlnet(tiny.control_net(torch.float32, seed=4))
    hooks = tiny.hook_lora(model)
    values = {"hooks": hooks, "control": control, "control_apply_to_uncond": True}
    return request(
        model=tiny.lora_model(model),
        positive=tiny.conditioning(1, torch.float32, start_percent=0.0, end_percent=0.9, **values),
        negative=tiny.conditioning(2, torch.float32, hooks=hooks),
        latent={"samples": torch.ones(1, *tiny.LATENT), "noise_mask": torch.ones(1, 8, 8) / 2},
        **changes,
    )


def flags() -> dict[str, Any]:
    import comfy.model_management as management

    return {
        "in_training": management.in_training,
        "training_fp8_bwd": getattr(management, "training_fp8_bwd", False),
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("iterations", [0, 1])
def test_a_run_changes_nothing_of_what_was_connected(iterations: int) -> None:
    from comfyui_dno.nodes import optimization

    asked = full_request(iterations=iterations, check_gradient=False)
    stock(asked)  # what ComfyUI itself leaves behind is not ours
    before, modes = of_request(asked), flags()
    optimization.run(asked)
    assert of_request(asked) == before
    assert flags() == modes


def test_a_finished_run_holds_no_model_until_a_garbage_collection() -> None:
    from comfyui_dno.nodes import optimization

    asked = request()
    models = weakref.ref(asked.drawing.model.model), weakref.ref(asked.vae.first_stage_model)
    gc.collect()
    gc.disable()
    try:
        result = optimization.run(asked)
        del asked
        assert [model() for model in models] == [None, None]
    finally:
        gc.enable()
    assert len(result.trajectory.records) == 3


def test_the_fingerprint_sees_a_change() -> None:
    asked = full_request()
    before = of_request(asked)
    asked.drawing.positive[0][1]["end_percent"] = 0.8
    assert of_request(asked) != before
    asked.drawing.positive[0][1]["end_percent"] = 0.9
    asked.model.model.diffusion_model.out[2].weight[0, 0, 0, 0] += 1
    assert of_request(asked) != before


FAILURES = {
    "interrupt": (1, interrupt, BaseException),
    "interrupt in the sweep": (CALLS + 1, interrupt, BaseException),
    "nan": (1, nan, NonFinite),
    "out of memory": (1, out_of_memory, torch.OutOfMemoryError),
    "wrong gradient": (None, ScaledGradient.apply, GradientMismatch),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_run_changes_nothing_either(name: str) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    at, act, error = FAILURES[name]
    asked = full_request(model=Calls(tiny.sd_model(torch.float32), at, act).model)
    before, modes = of_request(asked), flags()
    expected = (management.InterruptProcessingException,) if "interrupt" in name else (error,)
    with pytest.raises(expected):
        optimization.run(asked)
    management.interrupt_current_processing(False)
    assert flags() == modes
    after = of_request(asked)
    assert after["controls"] == before["controls"]
    management.unload_all_models()  # the LoRA leaves the weights
    assert of_request(asked) == before


def test_an_error_inside_the_scope_restores_what_was_there_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope

    monkeypatch.setattr(management, "training_fp8_bwd", True, raising=False)
    before = flags()
    with pytest.raises(KeyError), gradient_scope():
        assert management.in_training
        assert not management.training_fp8_bwd
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        raise KeyError
    assert flags() == before


def test_weights_made_normal_share_their_storage() -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import free_weights, gradient_scope

    model = tiny.sd_model(torch.float32)
    before = {name: p.data_ptr() for name, p in model.model.named_parameters()}
    bits = of_model(model)
    assert all(p.is_inference() for p in model.model.parameters())
    with gradient_scope():
        free_weights([model])
    tensors = [*model.model.parameters(), *model.model.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)
    assert {name: p.data_ptr() for name, p in model.model.named_parameters()} == before
    assert of_model(model) == bits


def test_transposed_and_sliced_weights_keep_their_numbers() -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal

    whole = torch.randn(6, 8)
    views = [whole.t(), whole[2:, ::2], whole[3], whole.half(), torch.tensor(2.0), whole[:0]]
    with gradient_scope():
        for view in views:
            free = normal(view)
            assert not free.is_inference()
            assert torch.equal(free, view)
            assert free.stride() == view.stride()
            assert free.data_ptr() == view.data_ptr()


def test_stock_results_stay_the_same_to_the_bit_with_loras_coming_and_going() -> None:
    from comfyui_dno.nodes import optimization

    plain = tiny.sd_model(torch.float32)
    with_lora = tiny.lora_model(plain)
    requests = [request(model=model, iterations=1) for model in (plain, with_lora)]
    expected = [stock(each)["samples"] for each in requests]
    assert not torch.equal(*expected)
    for _ in range(2):
        for index in (1, 0):
            result = optimization.run(requests[index])
            assert torch.equal(result.trajectory.latents[0], expected[index])
            for other in (0, 1):
                assert torch.equal(stock(requests[other])["samples"], expected[other])


def test_a_failed_run_leaves_nothing_on_guider_and_controlnet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.samplers

    from comfyui_dno.nodes import optimization

    guiders: list[Any] = []
    original = comfy.samplers.CFGGuider.__init__

    def remember(self: Any, *args: Any) -> None:
        original(self, *args)
        guiders.append(self)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "__init__", remember)
    model = Calls(tiny.sd_model(torch.float32), 1, nan).model
    asked = full_request(model=model)
    with pytest.raises(NonFinite):
        optimization.run(asked)
    (guider,) = guiders
    assert {"conds", "loaded_models", "inner_model"}.isdisjoint(vars(guider))
    control = asked.drawing.positive[0][1]["control"]
    for each in (control, control.previous_controlnet):
        assert each.cond_hint is None
        assert each.timestep_range is None
    assert model.model.current_patcher is None


class NetworkReward:
    """A reward with a network of its own."""

    name, unit, scale, differentiable = "network", "unit", 1.0, True

    def __init__(self) -> None:
        self.network = nn.Conv2d(3, 4, 3)
        self.modules = (self.network,)

    def score(self, images: Tensor, context: Any = None) -> Tensor:
        return torch.tanh(self.network(images)).flatten(1).mean(1)


def test_a_rewards_network_is_loaded_once_and_keeps_no_graph() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    reward = NetworkReward()
    weights = reward.network.weight.clone()
    asked = request(terms=(Term(reward),), iterations=1)
    optimization.run(asked)
    patcher = reward.network.dno_patcher
    optimization.run(asked)
    assert reward.network.dno_patcher is patcher
    assert not patcher.is_dynamic()
    assert patcher in management.loaded_models()
    assert torch.equal(reward.network.weight, weights)
    assert reward.network.weight.grad is None
    for value in [*vars(patcher).values(), *reward.network.parameters()]:
        assert getattr(value, "grad_fn", None) is None


def test_all_models_of_a_run_are_loaded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later call for one of them would evict another."""
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    reward = NetworkReward()
    asked = request(terms=(Term(reward),), iterations=1)
    wanted = {
        "model": asked.model.model.diffusion_model,
        "VAE": asked.vae.first_stage_model,
        "reward": reward.network,
    }
    calls: list[set[str]] = []
    original = management.load_models_gpu

    def noted(models: Any, *args: Any, **kwargs: Any) -> Any:
        modules = [module for each in models for module in each.model.modules()]
        calls.append({name for name, it in wanted.items() if any(it is m for m in modules)})
        return original(models, *args, **kwargs)

    monkeypatch.setattr(management, "load_models_gpu", noted)
    optimization.run(asked)
    assert calls[0] == set(wanted)
    assert calls[1:] == [{"VAE"}], "only VAE Decode of the result may load again"


QUANTIZED = Path(__file__).parent / "quantized.py"


def test_quantized_weights_do_not_crash_and_have_the_straight_through_gradient() -> None:
    """In a process of its own: pointing a wrapper tensor at a storage is a segmentation fault."""
    import comfy.cli_args

    tree = str(Path(comfy.cli_args.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(QUANTIZED), tree],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "right" in done.stdout
