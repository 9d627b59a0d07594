"""Make locales/en/nodeDefs.json from the nodes' schemas: python tools/build_locales.py

ComfyUI's page reads names, descriptions and tooltips from this file, and translators start from
it. The tooltips of sockets that a choice or a growing list brings along are read from here alone.
Needs the test environment of run.py: .venv/bin/python tools/build_locales.py
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "locales" / "en" / "nodeDefs.json"
SOCKETS = 10
"""Sockets of a growing list that have their tooltip; more are hardly used."""

Texts = dict[str, Any]


def node_defs(schemas: Iterable[Any]) -> Texts:
    """The texts of all nodes in ComfyUI's form: by node id, inputs by name, outputs by place."""
    return {schema.node_id: _node(schema) for schema in sorted(schemas, key=lambda s: s.node_id)}


def _node(schema: Any) -> Texts:
    outputs = {
        str(place): _texts(output.display_name or output.id, output.tooltip)
        for place, output in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": _merged(_inputs(schema.inputs)),
        "outputs": outputs,
    }


class Found(NamedTuple):
    """An input under its key, and the choice that brings it along."""

    key: str
    name: str
    tooltip: str | None
    choice: str = ""


def _inputs(inputs: Iterable[Any], before: str = "", choice: str = "") -> Iterator[Found]:
    """Every input. In the keys of nested ones the page has `_` for the dot."""
    for item in inputs:
        key = before + item.id
        yield Found(key, item.display_name or item.id, item.tooltip, choice)
        template = getattr(item, "template", None)
        if template is not None:
            for number in range(min(template.max, SOCKETS)):
                name = f"{template.prefix}{number}"
                yield Found(f"{key}_{name}", name, template.input.tooltip)
        for option in getattr(item, "options", None) or ():
            yield from _inputs(getattr(option, "inputs", ()), f"{key}_", getattr(option, "key", ""))


def _merged(inputs: Iterable[Found]) -> Texts:
    """By key; where choices explain an input differently, what each of them says."""
    by_key: dict[str, list[Found]] = {}
    for found in inputs:
        by_key.setdefault(found.key, []).append(found)
    return {key: _texts(group[0].name, _tooltip(group)) for key, group in by_key.items()}


def _tooltip(group: list[Found]) -> str | None:
    choices: dict[str, list[str]] = {}
    for found in group:
        if found.tooltip:
            choices.setdefault(found.tooltip, []).append(found.choice)
    if len(choices) < 2:
        return next(iter(choices), None)
    return "\n".join(f"- {', '.join(names)}: {tooltip}" for tooltip, names in choices.items())


def _texts(name: str, tooltip: str | None) -> Texts:
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def written(defs: Texts) -> str:
    return json.dumps(defs, indent=2, ensure_ascii=False) + "\n"


def schemas() -> list[Any]:
    """The schemas of the pack's nodes; ComfyUI is imported on the CPU."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401 - maps the checkout to comfyui_dno

    tree = conftest.find_comfyui()
    if tree is None:
        raise SystemExit("No ComfyUI was found. Prepare one with: python run.py test")
    sys.path.insert(0, str(tree))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from comfyui_dno.nodes.extension import DNOExtension

    nodes = asyncio.run(DNOExtension().get_node_list())
    return [node.GET_SCHEMA() for node in nodes]


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(written(node_defs(schemas())), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
