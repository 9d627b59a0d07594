"""What cannot be differentiated rightly, found before the run and said plainly."""

from __future__ import annotations

from typing import Any

from .scope import controls_of

CACHES = ("easycache", "lazycache")


class Unsupported(ValueError):
    """The graph holds something through which no right gradient can be had."""


def refuse_unsupported(model: Any, conds: dict[str, list[dict[str, Any]]], latent: Any) -> None:
    """Raise Unsupported for what would give a wrong gradient, naming it and the way out."""
    if getattr(latent, "is_nested", False) or latent.ndim != 4:
        raise Unsupported(
            "DNO Sampler works on single images, and this latent holds video or audio. "
            "Use an image model with a plain empty latent."
        )
    for key in CACHES:
        if any(key in wrappers for wrappers in model.wrappers.values()):
            raise Unsupported(
                f"The model carries {key}, which reuses old steps and falsifies the gradient. "
                "Remove the EasyCache or LazyCache node before DNO Sampler."
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
    for control in controls_of(conds):
        for patcher in control.get_models_only_self():
            if patcher.is_dynamic() and patcher.cached_patcher_init is None:
                raise Unsupported(
                    "A ControlNet is streamed by dynamic VRAM, where gradients are wrong. "
                    "Start ComfyUI with --disable-dynamic-vram to use ControlNets here."
                )


def _hooks_key(entry: dict[str, Any]) -> frozenset[int]:
    hooks = entry.get("hooks")
    return frozenset() if hooks is None else frozenset(id(hook.hook_ref) for hook in hooks.hooks)
