"""Models for a run: patchers under which gradients are right, loaded together."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ...dno_core.estimators import probes
from ...rewards.towers.cache import forget as forget_models
from .memory import AUTO, room_to_load
from .refusals import Unsupported

KEY = "dno"


def run_model(
    model: Any, companions: Sequence[Any], with_graph: bool = True, memory: str = AUTO
) -> Any:
    """A clone of the MODEL, ready for gradients, that is loaded in one go with its companions.

    Without `with_graph` it is loaded as for plain sampling, with no room for a graph; else with
    the room that the policy `memory` asks for.

    Weights that dynamic VRAM streams through reused buffers are replaced by a delegate with
    weights of its own. The input is not changed.
    """
    clone = non_dynamic(model, "model").clone()
    clone.set_additional_models(KEY, list(companions))
    if with_graph:
        clone.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING,
            KEY,
            partial(_with_room_for_graph, memory, list(companions)),
        )
    _fix_free_memory(clone)
    force_differentiable_attention(clone.model_options["transformer_options"])
    return clone


def run_vae(vae: Any) -> Any:
    """The VAE, or a copy of it on weights of its own where dynamic VRAM streams them."""
    patcher = non_dynamic(vae.patcher, "VAE")
    if patcher is vae.patcher:
        return vae
    clone = copy.copy(vae)
    clone.patcher, clone.first_stage_model = patcher, patcher.model
    return clone


class _Shell(nn.Module):
    """ModelPatcher writes `device` to its model, and transformers' models have it read-only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.device = torch.device("cpu")


class RewardPatcher(comfy.model_patcher.ModelPatcher):
    """Loads a reward's network whole or not at all.

    Its layers are plain torch ones, which cannot run with some of their weights elsewhere.
    """

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        return super().partially_load(device_to, 1e32, force_patch_weights)

    def partially_unload(
        self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        return 0


def reward_patcher(module: nn.Module) -> Any:
    """The ModelPatcher of a reward's network; it lives on the module, so it is loaded once.

    A module may bring its own as `dno_patcher`.
    """
    patcher = getattr(module, "dno_patcher", None)
    if patcher is None:
        patcher = RewardPatcher(
            _Shell(module),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=torch.device("cpu"),
        )
        patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_DETACH, _forget_unused)
        module.dno_patcher = patcher  # type: ignore[assignment]
    return patcher


def _forget_unused(_: Any, unloaded: bool) -> None:
    """Where ComfyUI makes room, or the user asks for it, models that no reward uses go as well."""
    if unloaded:  # not where a patcher is merely garbage collected
        forget_models()


def reward_patchers(rewards: Iterable[Any]) -> list[Any]:
    """The patchers of all networks of these rewards, each once."""
    patchers = [reward_patcher(module) for reward in rewards for module in reward.modules]
    return list({id(patcher): patcher for patcher in patchers}.values())


def has_quantized_weights(patcher: Any) -> bool:
    """Whether layers round their inputs (fp8, nvfp4): a finite difference means nothing there.

    Layers that multiply in full precision, as all do where the device has no fp8, only store
    their weights so.
    """
    return any(
        hasattr(each.data, "__tensor_flatten__")
        and not getattr(module, "_full_precision_mm", False)
        for module in patcher.model.modules()
        for each in module.parameters(recurse=False)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """In all the forms that it takes: torch's own, and those that drivers report."""
    management = comfy.model_management
    if probes.is_out_of_memory(error):
        return True
    if hasattr(management, "is_oom"):
        return bool(management.is_oom(error))
    return isinstance(error, management.OOM_EXCEPTION)


def non_dynamic(patcher: Any, what: str) -> Any:
    """The patcher itself, or its non-dynamic delegate. Raises Unsupported where none can be had."""
    if not patcher.is_dynamic():
        return patcher
    if patcher.cached_patcher_init is None:
        raise Unsupported(
            f"The {what} is streamed by dynamic VRAM and its loader cannot load it otherwise. "
            "Use a core loader node, or start ComfyUI with --disable-dynamic-vram."
        )
    return patcher.get_non_dynamic_delegate()


def force_differentiable_attention(transformer_options: dict[str, Any]) -> None:
    """Replace flash and sage attention, which have no right backward here, and only those."""
    attention = comfy.ldm.modules.attention
    active = getattr(attention.optimized_attention, "__name__", "")
    if "flash" not in active and "sage" not in active:
        return
    following = transformer_options.get("optimized_attention_override")

    def override(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        name = getattr(function, "__name__", "")
        exact = attention.attention_pytorch if "flash" in name or "sage" in name else function
        if following is not None:
            return following(exact, *args, **kwargs)
        return exact(*args, **kwargs)

    transformer_options["optimized_attention_override"] = override


def _with_room_for_graph(
    memory: str,
    companions: list[Any],
    executor: Any,
    model: Any,
    noise_shape: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load with room for the graph: a later load for one model would evict another.

    ComfyUI asks for the room of a larger batch.
    """
    others = sum(max(each.model_size() - each.loaded_size(), 0) for each in companions)
    room = room_to_load(memory, model, list(noise_shape), others)
    plain = max(model.memory_required([2 * noise_shape[0], *noise_shape[1:]]), 1)
    larger = [noise_shape[0] * max(math.ceil(room / plain), 1), *noise_shape[1:]]
    return executor(model, larger, *args, **kwargs)


def _fix_free_memory(patcher: Any) -> None:
    """Answer `get_free_memory` the same all through the run.

    ComfyUI batches cond and uncond by free memory; a recomputation that batches otherwise than
    the forward differs from it by 1e-4. The patcher must not own itself: ComfyUI drops a patcher
    that nobody holds, and older versions fail if the garbage collector does so while they unload.
    """
    measured: dict[Any, int] = {}
    owner = weakref.ref(patcher)

    def get_free_memory(device: Any) -> int:
        if device not in measured:
            measured[device] = type(owner()).get_free_memory(owner(), device)
        return measured[device]

    patcher.get_free_memory = get_free_memory
