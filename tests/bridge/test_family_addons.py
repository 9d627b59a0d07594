"""LoRA, ControlNet and noise mask on the families beside SD1.5; few-step models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .runs import iteration_zero, request, wavy_reward
from .test_advanced import random_noise, stock
from .test_families import FAMILIES, asked, right_gradient
from .test_parity import assert_equal_to_stock
from .tiny_addons import CONTROLS, LORA_AT, control_net, with_lora
from .tiny_unets import left_half, picture

DOUBLE, SINGLE = torch.float64, torch.float32
WAVY = {"terms": (wavy_reward(),)}


def with_control(name: str, dtype: torch.dtype) -> Any:
    """A ControlNet on both prompts."""
    made = FAMILIES[name](dtype)
    vae = made.get("vae") or request(dtype).vae
    control = control_net(name, dtype, vae)
    for side in ("positive", "negative"):
        made[side] = [[features, {**values, "control": control}] for features, values in made[side]]
    return {**made, "vae": vae}


def with_mask(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Half of a picture is kept, from a part of the way down."""
    channels = FAMILIES[name](dtype)["model"].model.latent_format.latent_channels
    latent = {"samples": picture(SINGLE, channels), "noise_mask": left_half()}
    return {"latent": latent, "denoise": 0.7}


@pytest.mark.parametrize("name", LORA_AT)
def test_a_lora_has_the_right_gradient(name: str) -> None:
    made = FAMILIES[name](DOUBLE)
    right_gradient(asked(name, DOUBLE, **WAVY, **{**made, "model": with_lora(name, made["model"])}))


@pytest.mark.parametrize("name", LORA_AT)
def test_a_run_with_a_lora_starts_from_ksamplers_picture(name: str) -> None:
    made = FAMILIES[name](SINGLE)
    changed = asked(name, SINGLE, **{**made, "model": with_lora(name, made["model"])})
    assert_equal_to_stock(changed)
    assert not torch.equal(iteration_zero(changed), iteration_zero(asked(name, SINGLE)))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_controlnet_has_the_right_gradient(name: str) -> None:
    right_gradient(asked(name, DOUBLE, **WAVY, **with_control(name, DOUBLE)))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_run_with_a_controlnet_starts_from_ksamplers_picture(name: str) -> None:
    changed = asked(name, SINGLE, **with_control(name, SINGLE))
    assert_equal_to_stock(changed)
    assert not torch.equal(iteration_zero(changed), iteration_zero(asked(name, SINGLE)))


@pytest.mark.parametrize("name", ["SDXL", "SD3", "Flux schnell"])
def test_a_noise_mask_has_the_right_gradient(name: str) -> None:
    right_gradient(asked(name, DOUBLE, **WAVY, **with_mask(name, DOUBLE)))


@pytest.mark.parametrize("name", ["SDXL", "SD3", "Flux schnell"])
def test_a_run_with_a_noise_mask_starts_from_ksamplers_picture(name: str) -> None:
    assert_equal_to_stock(asked(name, SINGLE, **with_mask(name, SINGLE)))


def test_a_noise_mask_on_a_picture_of_a_video_model_has_the_right_gradient() -> None:
    latent = {"samples": picture(SINGLE, 16).unsqueeze(2), "noise_mask": left_half()}
    right_gradient(asked("Qwen-Image", DOUBLE, **WAVY, latent=latent, denoise=0.7))
    assert_equal_to_stock(asked("Qwen-Image", SINGLE, latent=latent, denoise=0.7))


def turbo(steps: int, dtype: torch.dtype, **changes: Any) -> Any:
    """SDXL-Turbo: the sigmas of SDTurboScheduler, no guidance, by DNO Sampler (Advanced)."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SDTurboScheduler

    from comfyui_dno.nodes.drawing import GuiderDrawing

    made = FAMILIES["SDXL"](dtype)
    sigmas = SDTurboScheduler.execute(made["model"], steps, 1.0).args[0]
    assert len(sigmas) == steps + 1
    guider = comfy.samplers.CFGGuider(made["model"])
    guider.set_conds(made["positive"], made["negative"])
    guider.set_cfg(1.0)
    return request(dtype, drawing=GuiderDrawing(guider, sigmas, random_noise(5)), **changes)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_turbo_has_the_right_gradient(steps: int) -> None:
    right_gradient(turbo(steps, DOUBLE, **WAVY))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_turbo_starts_from_the_picture_of_sampler_custom_advanced(steps: int) -> None:
    changed = turbo(steps, SINGLE)
    assert torch.equal(iteration_zero(changed), stock(changed))


def lcm(dtype: torch.dtype) -> dict[str, Any]:
    """LCM: its own sampling, as the node ModelSamplingDiscrete patches it."""
    return patched("SD1.5", dtype, "lcm", False)


def x0(dtype: torch.dtype) -> dict[str, Any]:
    return patched("SD1.5", dtype, "x0", False)


def zero_snr(dtype: torch.dtype) -> dict[str, Any]:
    return patched("SD1.5", dtype, "v_prediction", True)


def patched(name: str, dtype: torch.dtype, sampling: str, zsnr: bool) -> dict[str, Any]:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    made = FAMILIES[name](dtype)
    return {**made, "model": ModelSamplingDiscrete().patch(made["model"], sampling, zsnr)[0]}


def lightning(dtype: torch.dtype) -> dict[str, Any]:
    return FAMILIES["SDXL"](dtype)


def schnell(dtype: torch.dtype) -> dict[str, Any]:
    return {**FAMILIES["Flux schnell"](dtype), "scheduler": "simple"}


FEW_STEP = {"LCM": lcm, "Lightning": lightning, "schnell": schnell, "zero SNR": zero_snr, "x0": x0}


def few_steps(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    usual = {"steps": 4, "cfg": 1.0, "scheduler": "sgm_uniform"}
    return request(dtype, **{**usual, **FEW_STEP[name](dtype), **changes})


@pytest.mark.parametrize("name", FEW_STEP)
def test_a_few_step_model_has_the_right_gradient(name: str) -> None:
    right_gradient(few_steps(name, DOUBLE, **WAVY))


@pytest.mark.parametrize("name", FEW_STEP)
def test_a_few_step_model_starts_from_ksamplers_picture(name: str) -> None:
    assert_equal_to_stock(few_steps(name, SINGLE))


def test_one_step_has_the_right_gradient_and_ksamplers_picture() -> None:
    right_gradient(few_steps("schnell", DOUBLE, steps=1, **WAVY))
    assert_equal_to_stock(few_steps("schnell", SINGLE, steps=1))
