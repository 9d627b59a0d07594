"""What was changed by hand, written into the workflow that goes into saved pictures."""

from __future__ import annotations

import copy
from typing import Any

CHANGES = "changes"


def record_changes(
    prompt: dict[str, Any] | None,
    extra: dict[str, Any] | None,
    node_id: str,
    text: str,
    position: int,
) -> None:
    """Set the widget `changes` of a node to `text` in both forms of the prompt's metadata.

    `prompt` and `extra` (extra_pnginfo) are ComfyUI's own for this prompt, and what SaveImage
    writes; what they held before is replaced, not changed. `position`: of the widget among the
    node's widgets.
    """
    if prompt is not None and node_id in prompt:
        node = prompt[node_id]
        prompt[node_id] = {**node, "inputs": {**node.get("inputs", {}), CHANGES: text}}
    workflow = (extra or {}).get("workflow")
    if extra is None or not isinstance(workflow, dict):
        return
    workflow = copy.deepcopy(workflow)
    node = _find(workflow, node_id.split(":"))
    if node is not None and _set(node, text, position):
        extra["workflow"] = workflow


def workflow_id(extra: dict[str, Any] | None) -> str | None:
    """The id of the graph that was queued, where a page queued one."""
    workflow = (extra or {}).get("workflow")
    found = workflow.get("id") if isinstance(workflow, dict) else None
    return found if isinstance(found, str) else None


def _find(workflow: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """The node of a path such as 12:7, node 7 in the subgraph that node 12 is an instance of."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    nodes: list[dict[str, Any]] = workflow.get("nodes", [])
    node = None
    for name in path:
        if node is not None:
            inner = (each for each in subgraphs if each.get("id") == node.get("type"))
            nodes = next(inner, {}).get("nodes", [])
        node = next((each for each in nodes if str(each.get("id")) == name), None)
        if node is None:
            return None
    return node


def _set(node: dict[str, Any], text: str, position: int) -> bool:
    values = node.get("widgets_values")
    if isinstance(values, dict):
        values[CHANGES] = text
        return True
    if not isinstance(values, list):
        return False
    values += [None] * (position + 1 - len(values))
    values[position] = text
    return True
