"""Rewards by name. One more reward is one more file in this folder that has a SPEC.

reward = create("colour", colour="#3366ff")
scores = reward.score(images, Context())
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Any

from .base import Context, Input, PixelReward, Reward, RewardError, Spec

log = logging.getLogger("dno")


def discover() -> dict[str, Spec]:
    """The SPECs of all files in this folder, by name in alphabetical order.

    A file that cannot be imported is logged and left out: the other rewards stay usable.
    """
    found: dict[str, Spec] = {}
    for module in pkgutil.iter_modules(__path__):
        try:
            spec = getattr(importlib.import_module(f".{module.name}", __name__), "SPEC", None)
        except Exception:
            log.exception("The reward file rewards/%s.py was left out.", module.name)
            continue
        if isinstance(spec, Spec):
            found[spec.name] = spec
    return dict(sorted(found.items()))


REGISTRY = discover()


def names() -> tuple[str, ...]:
    """The names of all rewards."""
    return tuple(REGISTRY)


def create(name: str, **inputs: Any) -> Reward:
    """Make a reward; inputs that are not given take their defaults. Raises RewardError."""
    spec = REGISTRY.get(name)
    if spec is None:
        raise RewardError(f'There is no reward "{name}". Choose one of: {", ".join(REGISTRY)}.')
    values = {item.name: item.default for item in spec.inputs}
    unknown = sorted(inputs.keys() - values.keys())
    if unknown:
        raise RewardError(
            f"{name} has no input {', '.join(unknown)}. "
            f"It takes: {', '.join(values) or 'no inputs'}."
        )
    return spec.create(**{**values, **inputs})


__all__ = [
    "REGISTRY",
    "Context",
    "Input",
    "PixelReward",
    "Reward",
    "RewardError",
    "Spec",
    "create",
    "discover",
    "names",
]
