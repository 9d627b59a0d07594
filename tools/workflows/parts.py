"""Nodes and groups as tools/graph.js takes them, and the parts that several workflows share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Node = dict[str, Any]
Graph = dict[str, Any]
Model = dict[str, str]
BLUE, GREEN, AMBER = "#3f789e", "#3f7d4e", "#b58b2a"
SAMPLER_SIZE = (340, 1290)
"""With room for the panel, which unfolds when a run begins."""


def node(
    number: int,
    kind: str,
    pos: tuple[int, int],
    size: tuple[int, int] = (300, 60),
    title: str = "",
    inputs: dict[str, tuple[int, str]] | None = None,
    models: Sequence[Model] = (),
    **widgets: Any,
) -> Node:
    """A node: inputs name (node, output name); widgets are set in the order given.

    models: the files that its widgets name, for ComfyUI's list of missing models.
    """
    return {
        "id": number,
        "type": kind,
        "pos": list(pos),
        "size": list(size),
        "title": title,
        "inputs": {name: list(link) for name, link in (inputs or {}).items()},
        "models": list(models),
        "widgets": {name.replace("__", "."): value for name, value in widgets.items()},
    }


def group(title: str, members: Sequence[int], color: str) -> dict[str, Any]:
    """A frame around those nodes, as large as they turn out on the page."""
    return {"title": title, "members": list(members), "color": color}


def sampling(seed: int, steps: int, cfg: float) -> dict[str, Any]:
    return {"seed": seed, "control_after_generate": "fixed", "steps": steps, "cfg": cfg}


def curve(number: int, sampler: int, pos: tuple[int, int]) -> list[Node]:
    """Two nodes: the reward curve of a sampler, and its picture saved as dno/curve."""
    x, y = pos
    return [
        node(
            number,
            "DNO_RewardCurve",
            (x, y),
            (260, 100),
            "",
            {"trajectory": (sampler, "trajectory")},
        ),
        node(
            number + 1,
            "SaveImage",
            (x + 300, y),
            (560, 430),
            "Save: curve",
            {"images": (number, "image")},
            filename_prefix="dno/curve",
        ),
    ]
