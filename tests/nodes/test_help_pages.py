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


def test_a_reward_s_row_tells_what_it_needs_and_how_large_its_model_is(comfy):
    from comfyui_dno.rewards import REGISTRY
    from comfyui_dno.rewards.files.missing import readable_size

    page = (DOCS / "DNO_RewardLoader.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if "|" in line}
    for name, spec in REGISTRY.items():
        if spec.group in ("prompt", "taste"):
            assert ("prompt" in rows[name].split(" | ")[-1]) == bool(spec.prompt), name
        for item in spec.inputs:
            for source in (known for known in item.sources if known.name == item.default):
                if source.size > 1e9:
                    assert readable_size(source.size) in rows[name], name
    parts = page.partition("\n## The rewards\n")[2].partition("\n## ")[0].split("\n\n**")
    for part in parts:
        title = part.partition(".**")[0].strip("*\n")
        listed = [spec for name, spec in REGISTRY.items() if f"\n| {name} |" in part]
        assert all(bool(spec.reference) == (title == "Reference") for spec in listed), title
        assert all((spec.group == "black box") == (title == "Black box") for spec in listed), title
        assert all((spec.group == "pixels") == (title == "Pixels") for spec in listed), title


def test_the_page_of_reward_loader_leads_to_the_longer_pages_of_the_rewards(comfy):
    from comfyui_dno.rewards import REGISTRY

    page = (DOCS / "DNO_RewardLoader.md").read_text(encoding="utf-8")
    assert "docs/rewards/NAME.md" in page
    assert all((DOCS.parents[1] / "docs" / "rewards" / f"{name}.md").is_file() for name in REGISTRY)
