"""Reward networks in ComfyUI's memory management: loaded whole, once, and freed like any model."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from comfyui_dno.rewards.towers import cache


def reward(*modules: nn.Module) -> Any:
    return types.SimpleNamespace(modules=modules)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).to(dtype)


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def patchers_of(*modules: nn.Module) -> list[Any]:
    from comfyui_dno.nodes.comfy_bridge.loading import reward_patchers

    return reward_patchers([reward(*modules)])


def is_in_memory(patcher: Any) -> bool:
    import comfy.model_management as management

    return any(patcher is other for other in management.loaded_models())


def test_a_network_has_one_patcher_however_many_rewards_use_it() -> None:
    from comfyui_dno.nodes.comfy_bridge.loading import reward_patchers

    shared, other = network(), network()
    found = reward_patchers([reward(shared, other), reward(shared)])
    assert [patcher.model.network for patcher in found] == [shared, other]
    assert reward_patchers([reward(shared)]) == found[:1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_size_is_that_of_the_weights_in_their_precision(dtype: torch.dtype) -> None:
    net = network(dtype)
    (patcher,) = patchers_of(net)
    assert patcher.model_size() == bytes_of(net)


def test_a_network_is_loaded_whole_or_not_at_all_however_little_memory_there_is() -> None:
    """Plain torch layers cannot run with a part of their weights on another device."""
    net = network()
    (patcher,) = patchers_of(net)
    patcher.partially_load(torch.device("cpu"), extra_memory=10)
    assert patcher.loaded_size() == bytes_of(net) and not patcher.model.model_lowvram
    assert patcher.partially_unload(torch.device("cpu"), 10) == 0
    assert patcher.loaded_size() == bytes_of(net)


def test_comfyui_frees_it_with_all_other_models() -> None:
    import comfy.model_management as management

    (patcher,) = patchers_of(network())
    management.load_models_gpu([patcher])
    assert is_in_memory(patcher)
    management.unload_all_models()
    assert not is_in_memory(patcher) and patcher.loaded_size() == 0


def test_freeing_memory_lets_go_of_models_that_no_reward_uses() -> None:
    import comfy.model_management as management

    unused = cache.once(("unused",), network)
    gone = weakref.ref(unused)
    used = cache.once(("used",), network)
    (patcher,) = patchers_of(used)
    management.load_models_gpu([patcher])
    del unused
    gc.collect()
    assert gone() is not None
    management.unload_all_models()
    gc.collect()
    assert gone() is None
    assert cache.kept(("used",)) is used
    cache.forget()


def test_a_network_that_nothing_uses_any_more_is_freed() -> None:
    import comfy.model_management as management

    net = network()
    gone = weakref.ref(net)
    found = patchers_of(net)
    management.load_models_gpu(found)
    del net, found
    gc.collect()
    assert gone() is None
