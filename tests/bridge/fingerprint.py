"""Whether something of the user's was changed: the whole of it as one comparable value."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def fingerprint(value: Any) -> Any:
    """Tensors by their bits, containers by their content, everything else by identity."""
    if isinstance(value, Tensor):
        return ("tensor", str(value.dtype), tuple(value.shape), value.double().flatten().tolist())
    if isinstance(value, dict):
        return {str(key): fingerprint(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [fingerprint(item) for item in value])
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return id(value)


def of_model(patcher: Any) -> Any:
    """A ModelPatcher: its weights, patches, options, wrappers, and what hangs on it."""
    names = (
        "model_options",
        "patches",
        "object_patches",
        "object_patches_backup",
        "backup",
        "wrappers",
        "callbacks",
        "injections",
        "additional_models",
        "attachments",
        "hook_patches",
        "hook_mode",
        "cached_hook_patches",
        "current_hooks",
        "forced_hooks",
        "hook_backup",
    )
    return {
        "weights": fingerprint(dict(patcher.model.state_dict())),
        "latent_format": fingerprint(
            getattr(getattr(patcher.model, "latent_format", None), "__dict__", {})
        ),
        "own": sorted(vars(patcher)),
        **{name: fingerprint(getattr(patcher, name)) for name in names},
    }


def of_control(control: Any) -> Any:
    """A ControlNet: weights, hint, strength and what it caches while it runs."""
    return {
        "weights": fingerprint(dict(control.control_model.state_dict())),
        "state": fingerprint(vars(control)),
    }


def of_request(request: Any) -> Any:
    """All that was connected to the node."""
    controls = [
        entry[1]["control"]
        for entry in [*request.drawing.positive, *request.drawing.negative]
        if "control" in entry[1]
    ]
    return {
        "model": of_model(request.model),
        "vae": of_model(request.vae.patcher),
        "vae object": fingerprint(vars(request.vae)),
        "positive": fingerprint(request.drawing.positive),
        "negative": fingerprint(request.drawing.negative),
        "latent": fingerprint(request.latent),
        "controls": [of_control(control) for control in controls],
    }
