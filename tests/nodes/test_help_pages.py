from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "web" / "docs"


def names_of(inputs):
    """Names of inputs and of those that their choices bring along."""
    for item in inputs:
        yield item.id
        for choice in getattr(item, "options", None) or ():
            if hasattr(choice, "inputs"):
                yield from names_of(choice.inputs)


@pytest.fixture(scope="module")
def schemas(comfy):
    from comfyui_dno.nodes.extension import DNOExtension

    nodes = asyncio.run(DNOExtension().get_node_list())
    return [node.GET_SCHEMA() for node in nodes]


def test_every_node_has_a_help_page_and_every_page_a_node(schemas):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
    assert pages.keys() == {schema.node_id for schema in schemas}
    for schema in schemas:
        assert pages[schema.node_id].startswith(f"# {schema.display_name}\n")


def test_every_input_is_explained_under_the_name_it_has_on_the_node(schemas):
    for schema in schemas:
        page = (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
        for name in names_of(schema.inputs):
            assert re.search(rf"(?<![a-z_]){name}(?![a-z_])", page), f"{schema.node_id}: {name}"


def test_every_reward_is_listed(comfy):
    from comfyui_dno.rewards import REGISTRY

    page = (DOCS / "DNO_RewardLoader.md").read_text(encoding="utf-8")
    for name in REGISTRY:
        assert f"| {name} |" in page
