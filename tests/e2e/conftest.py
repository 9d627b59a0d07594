"""One real server for the end-to-end tests, and the shipped workflows."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyui_dno.tests.harness import ComfyServer, start_server

WORKFLOWS = Path(__file__).resolve().parent.parent.parent / "workflows"
SAMPLER = "DNO_Sampler"


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    with start_server() as running:
        yield running


def api_workflow(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")))


def node_of(workflow: dict[str, Any], class_type: str) -> str:
    """The id of the first node of that type."""
    return next(key for key, node in workflow.items() if node["class_type"] == class_type)


def with_inputs(workflow: dict[str, Any], class_type: str, **inputs: Any) -> dict[str, Any]:
    """A copy in which every node of that type has these inputs; None removes one."""
    changed = copy.deepcopy(workflow)
    for node in changed.values():
        if node["class_type"] == class_type:
            for name, value in inputs.items():
                node["inputs"][name] = value
                if value is None:
                    del node["inputs"][name]
    return changed


@pytest.fixture
def quick() -> dict[str, Any]:
    """First light, made short: four steps and two iterations."""
    workflow = api_workflow("first_light")
    workflow = with_inputs(workflow, "KSampler", steps=4)
    return with_inputs(workflow, SAMPLER, steps=4, iterations=2)
