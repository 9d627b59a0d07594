"""locales/en: made from the schemas, served by ComfyUI, and shown by its page."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "locales" / "en" / "nodeDefs.json"


@pytest.fixture(scope="module")
def build_locales() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("build_locales")


@pytest.fixture(scope="module")
def schemas(comfy: Any) -> list[Any]:
    from comfyui_dno.nodes.extension import DNOExtension

    return [node.GET_SCHEMA() for node in asyncio.run(DNOExtension().get_node_list())]


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def test_the_file_is_up_to_date(build_locales: Any, schemas: list[Any]) -> None:
    """Otherwise run: python tools/build_locales.py"""
    made = build_locales.written(build_locales.node_defs(schemas))
    assert FILE.read_text(encoding="utf-8") == made


def test_every_input_has_its_name_and_a_tooltip(schemas: list[Any], texts: dict[str, Any]) -> None:
    assert texts.keys() == {schema.node_id for schema in schemas}
    for schema in schemas:
        node = texts[schema.node_id]
        assert node["display_name"] == schema.display_name and node["description"]
        for item in schema.inputs:
            assert node["inputs"][item.id]["name"] == (item.display_name or item.id)
        for key, item in node["inputs"].items():
            assert item["tooltip"], f"{schema.node_id}: {key}"
        assert len(node["outputs"]) == len(schema.outputs)


def test_sockets_that_a_choice_brings_along_are_explained_for_every_choice(
    schemas: list[Any], texts: dict[str, Any]
) -> None:
    loader = next(schema for schema in schemas if schema.node_id == "DNO_RewardLoader")
    (combo,) = (item for item in loader.inputs if item.id == "reward")
    inputs = texts["DNO_RewardLoader"]["inputs"]
    for choice in combo.options:
        for item in choice.inputs:
            assert item.tooltip in inputs[f"reward_{item.id}"]["tooltip"], choice.key
    sockets = texts["DNO_RewardMix"]["inputs"]
    assert sockets["rewards_reward_0"]["name"] == "reward_0"
    assert sockets["rewards_reward_0"]["tooltip"] == sockets["rewards_reward_9"]["tooltip"]


def test_names_hold_nothing_that_the_page_would_read_as_a_pattern(texts: dict[str, Any]) -> None:
    for node in texts.values():
        shown = [node["display_name"], node["description"]]
        shown += [item["name"] for item in [*node["inputs"].values(), *node["outputs"].values()]]
        assert not [text for text in shown if set(text) & set("{}@|$")]
