"""What the older ComfyUI versions do not have, and the tests that ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from comfyui_dno.launcher import comfyui


@dataclass(frozen=True)
class Need:
    """`tests`, as their node ids begin, need ComfyUI `version` because of `what`."""

    version: str
    what: str
    tests: tuple[str, ...]


NEEDS = (
    Need(
        "0.24.1",
        "Dual Model Guider is a node of newer versions",
        (
            "tests/bridge/test_advanced.py::test_it_starts_from_the_picture_of_sampler_custom_"
            "advanced[dual_model_guider",
            "tests/bridge/test_advanced.py::test_the_gradient_equals_central_differences["
            "dual_model_guider",
            "tests/bridge/test_advanced.py::test_the_guider_is_left_as_it_was",
        ),
    ),
)


def unmet(tree: Path) -> tuple[Need, ...]:
    """What the ComfyUI in `tree` is too old for."""
    found = comfyui.numbers(comfyui.version_of(tree))
    return tuple(need for need in NEEDS if comfyui.numbers(need.version) > found)


def left_out(item: pytest.Item, needs: tuple[Need, ...]) -> Need | None:
    """The first of `needs` that this test has."""
    return next((need for need in needs if item.nodeid.startswith(need.tests)), None)
