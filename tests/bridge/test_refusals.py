"""What has no right gradient is refused before anything is computed, in two sentences."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.dno_core import Backpropagation, Term
from comfyui_dno.rewards.base import PixelReward

from . import tiny
from .runs import request
from .sabotage import Calls, nan


def refused(asked: Any, words: str) -> str:
    """The message; the model must not have been called."""
    from comfyui_dno.nodes import optimization

    calls = Calls(asked.model, -1, nan)
    with pytest.raises(ValueError, match=words) as caught:
        optimization.run(
            dataclasses.replace(
                asked, drawing=dataclasses.replace(asked.drawing, model=calls.model)
            )
        )
    message = str(caught.value)
    assert calls.count == 0
    assert message.count(". ") == 1, message
    assert message.endswith(".")
    return message


def test_a_hook_lora_on_one_prompt_only_is_refused() -> None:
    model = tiny.sd_model(torch.float32)
    hooks = tiny.hook_lora(model)
    positive = tiny.conditioning(1, torch.float32, hooks=hooks)
    refused(request(model=model, positive=positive), "Hook LoRAs differ")


def test_hooks_that_a_controlnet_brings_to_one_prompt_only_are_refused() -> None:
    model = tiny.sd_model(torch.float32)
    control = tiny.control_net(torch.float32)
    control.extra_hooks = tiny.hook_lora(model)
    positive = tiny.conditioning(1, torch.float32, control=control)
    refused(request(model=model, positive=positive), "Hook LoRAs differ")


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_models_that_skip_steps_are_refused(name: str) -> None:
    from comfy_extras import nodes_easycache

    node = {"EasyCache": nodes_easycache.EasyCacheNode, "LazyCache": nodes_easycache.LazyCacheNode}
    model = node[name].execute(tiny.sd_model(torch.float32), 0.2, 0.15, 0.95, False)[0]
    refused(request(model=model), "Remove the EasyCache or LazyCache")


def test_a_running_average_of_the_guidance_is_refused() -> None:
    from comfy_extras.nodes_apg import APG

    model = APG.execute(tiny.sd_model(torch.float32), 1.0, 5.0, -0.5)[0]
    refused(request(model=model), "APG's momentum")


def test_a_model_on_several_gpus_is_refused() -> None:
    model = tiny.sd_model(torch.float32)
    model.set_additional_models("multigpu", [model.clone()])
    refused(request(model=model), "several GPUs")


def test_a_video_latent_is_refused() -> None:
    latent = {"samples": torch.zeros(1, 4, 3, 8, 8)}
    refused(request(latent=latent), "single images")


def test_a_nested_latent_is_refused() -> None:
    from comfy.nested_tensor import NestedTensor

    samples = NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 2)])
    refused(request(latent={"samples": samples}), "single images")


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_latent_of_the_wrong_channels_is_refused(iterations: int) -> None:
    latent = {"samples": torch.ones(1, 16, 8, 8)}
    refused(request(latent=latent, iterations=iterations), "16 channels and this model works on 4")


def test_an_empty_latent_of_other_channels_is_adapted_as_ksampler_does() -> None:
    from comfyui_dno.nodes import optimization

    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    result = optimization.run(request(latent=latent, iterations=0))
    assert result.latent["samples"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_vae_of_another_model_is_refused(iterations: int) -> None:
    asked = request(vae=tiny.flux_vae(torch.float32), iterations=iterations)
    refused(asked, "VAE")


@pytest.mark.parametrize("iterations", [0, 2])
def test_denoise_0_is_refused(iterations: int) -> None:
    refused(request(denoise=0.0, iterations=iterations), "Set denoise above 0")


def test_watched_rewards_alone_are_refused() -> None:
    watched = Term(rewards.create("brightness"), watch=True)
    refused(request(terms=(watched,)), "only watched")


def test_a_weight_of_0_alone_is_refused() -> None:
    refused(request(terms=(Term(rewards.create("brightness"), weight=0.0),)), "only watched")


@pytest.mark.parametrize(
    "function",
    [
        lambda images: images.mean(),
        lambda images: images.flatten(1).mean(1, keepdim=True),
        lambda images: images.flatten(1)[:1].mean(1),
    ],
    ids=["one number", "a column", "one for two"],
)
def test_a_reward_of_the_wrong_shape_is_named(function: Any) -> None:
    from comfyui_dno.nodes import optimization

    reward = PixelReward("crooked", "unit", 1.0, function)
    with pytest.raises(ValueError, match="The reward 'crooked' gave .*one score an image"):
        optimization.run(request(terms=(Term(reward),), batch=2))


def test_a_reward_without_a_gradient_is_named() -> None:
    reward = PixelReward("steps", "unit", 1.0, lambda x: x.flatten(1).mean(1), differentiable=False)
    asked = request(terms=(Term(reward),), estimator=Backpropagation())
    refused(asked, "'steps' has no gradient to climb. Choose the estimator 'auto'")


def test_a_reward_that_says_it_has_a_gradient_and_has_none_is_named() -> None:
    from comfyui_dno.nodes import optimization

    reward = PixelReward("liar", "unit", 1.0, lambda x: x.detach().flatten(1).mean(1))
    with pytest.raises(Exception, match="'liar'"):
        optimization.run(request(terms=(Term(reward),)))
