"""What cannot be differentiated rightly, found before the run and said plainly."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from .scope import controls_of

CACHES = ("easycache", "lazycache")


class Unsupported(ValueError):
    """The graph holds something through which no right gradient can be had."""


def refuse_unsupported(model: Any, conds: dict[str, list[dict[str, Any]]], latent: Any) -> None:
    """Raise Unsupported for what would give a wrong gradient, naming it and the way out."""
    if not _holds_pictures(latent):
        raise Unsupported(
            "DNO Sampler works on single images, and this latent holds video or audio. "
            "Use an image model with a plain empty latent, or a video model with one frame."
        )
    for key in CACHES:
        if any(key in wrappers for wrappers in model.wrappers.values()):
            raise Unsupported(
                f"The model carries {key}, which reuses old steps and falsifies the gradient. "
                "Remove the EasyCache or LazyCache node before DNO Sampler."
            )
    if _averages_guidance(model):
        raise Unsupported(
            "APG's momentum mixes the guidance of earlier steps into each step, which falsifies "
            "the gradient. Set momentum to 0 on the APG node."
        )
    if model.get_additional_models_with_key("multigpu"):
        raise Unsupported(
            "The model is split over several GPUs, where no gradient can be computed. "
            "Remove the multi-GPU node before DNO Sampler."
        )
    if len({_hooks_key(entry) for entries in conds.values() for entry in entries}) > 1:
        raise Unsupported(
            "Hook LoRAs differ between the positive and the negative prompt, which overwrites "
            "weights inside a step. Use the same hooks on both, or Load LoRA instead."
        )
    for what, patcher in _hangers_on(model, conds):
        if patcher.is_dynamic():
            raise Unsupported(
                f"A {what} is streamed by dynamic VRAM, where gradients are wrong. "
                "Start ComfyUI with --disable-dynamic-vram to use it with DNO Sampler."
            )


def refuse_wrong_vae(model: Any, vae: Any) -> None:
    """Raise Unsupported for a VAE that cannot decode this model's latents."""
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        raise Unsupported(
            f"This VAE decodes latents of {vae.latent_channels} channels and the model makes "
            f"{channels}. Connect the model's own VAE to DNO Sampler."
        )


def without_backward(error: RuntimeError) -> Unsupported | None:
    """What to say where a kernel that the model calls has no backward; None for other errors."""
    kernel = re.search(r"backward through (\w+\.\w+)\S* but no autograd formula", str(error))
    if kernel is None:
        return None
    return Unsupported(
        f"This model calls {kernel[1]}, a kernel through which no gradient can be computed. "
        "Choose zo_sgd on ZO Gradient Estimator, which needs no gradient, or use another model."
    )


def _holds_pictures(latent: Any) -> bool:
    """Whether it is [B,C,h,w], or [B,C,1,h,w] as video models and Qwen-Image have a picture."""
    if getattr(latent, "is_nested", False):
        return False
    return latent.ndim == 4 or (latent.ndim == 5 and latent.shape[2] == 1)


def _averages_guidance(model: Any) -> bool:
    """Whether core's APG node was set to a running average; its state is in its closure."""
    functions = model.model_options.get("sampler_pre_cfg_function", ())
    return any(
        function.__module__.endswith("nodes_apg")
        and bool(inspect.getclosurevars(function).nonlocals.get("momentum"))
        for function in functions
        if inspect.isfunction(function)
    )


def _hangers_on(model: Any, conds: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, Any]]:
    """The models besides the UNet that take part in a denoiser call, and what they are."""
    for control in controls_of(conds):
        yield from (("ControlNet", patcher) for patcher in control.get_models())
    for entry in chain.from_iterable(conds.values()):
        if "gligen" in entry:
            yield "GLIGEN model", entry["gligen"][1]
        yield from (("conditioning's model", each) for each in entry.get("additional_models", ()))
    patches = [*model.get_nested_additional_models(), *model.model_patches_models()]
    yield from (("model patch", patcher) for patcher in patches)


def _hooks_key(entry: dict[str, Any]) -> frozenset[int]:
    groups = [entry.get("hooks")]
    if "control" in entry:
        groups += entry["control"].get_extra_hooks()
    hooks = chain.from_iterable(group.hooks for group in groups if group is not None)
    return frozenset(id(hook.hook_ref) for hook in hooks)
