"""Rewards by name. One more reward is one more file in this folder that has a SPEC.

reward = create("colour", colour="#3366ff")
scores = reward.score(images, Context())

Another package offers rewards with a list named DNO_REWARDS (see `offered`); a script with
`register`.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Any, get_args

from .base import Context, Group, Input, PixelReward, Reward, RewardError, Spec
from .offered import offered

log = logging.getLogger("dno")


def discover() -> dict[str, Spec]:
    """The SPECs of all files in this folder, by name, in the order of groups and labels.

    A file that cannot be imported is logged and left out: the other rewards stay usable.
    """
    found: list[Spec] = []
    for module in pkgutil.iter_modules(__path__):
        try:
            spec = getattr(importlib.import_module(f".{module.name}", __name__), "SPEC", None)
        except Exception:
            log.exception("The reward file rewards/%s.py was left out.", module.name)
            continue
        if isinstance(spec, Spec):
            found.append(spec)
    return in_order(found)


def in_order(specs: list[Spec]) -> dict[str, Spec]:
    """By name, sorted by group and then by label."""
    groups = get_args(Group)
    ordered = sorted(specs, key=lambda spec: (groups.index(spec.group), spec.label.lower()))
    return {spec.name: spec for spec in ordered}


REGISTRY = discover()
_registered: dict[str, Spec] = {}


def register(spec: Spec) -> Spec:
    """Add a reward for this process, or replace one that was added before.

    Raises ValueError for a name that one of this folder has.
    """
    if spec.name in REGISTRY:
        raise ValueError(f'There is a reward "{spec.name}" already. Give yours another name.')
    _registered[spec.name] = spec
    return spec


def specs() -> dict[str, Spec]:
    """All rewards there are now, by name: this folder's, registered ones, and other packs'.

    A name that is taken goes to the first of these, in this order.
    """
    found = {**REGISTRY, **_registered}
    return in_order([*found.values(), *offered(found).values()])


def names() -> tuple[str, ...]:
    """The names of all rewards."""
    return tuple(specs())


def create(name: str, **inputs: Any) -> Reward:
    """Make a reward; inputs that are not given take their defaults. Raises RewardError."""
    known = specs()
    spec = known.get(name)
    if spec is None:
        raise RewardError(f'There is no reward "{name}". Choose one of: {", ".join(known)}.')
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
    "register",
    "specs",
]
