"""Every reward has a page, which says what the reward, its files and the results files say."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from comfyui_dno.rewards import REGISTRY
from comfyui_dno.rewards.files.missing import readable_size
from comfyui_dno.rewards.towers.lpips_layers import LAYOUTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "rewards"
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = [
    "What it likes",
    "What to connect",
    "Unit and range",
    "How it is gamed",
    "Inputs",
    "Cost",
    "Licence",
    "Source",
]


def page_of(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of all table rows of a section."""
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def reward_pages():
    """The script that fills the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in ("checkout", "reward_pages"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("reward_pages")
    for name in ("checkout", "reward_pages"):
        sys.modules.pop(name, None)


def test_every_reward_has_a_page_and_every_page_a_reward():
    assert {page.stem for page in FOLDER.glob("*.md")} == {*REGISTRY, "README"}


@pytest.mark.parametrize("name", REGISTRY)
def test_a_page_has_all_sections_in_the_same_order(name):
    page = page_of(name)
    assert page.startswith(f"# {REGISTRY[name].label}\n\n`{name}` in Reward Loader.")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert "**Watch beside it:** " in page.partition("## How it is gamed")[2]


def test_the_generated_parts_are_up_to_date(reward_pages):
    """Otherwise run: python benchmarks/reward_pages.py"""
    for name, path in reward_pages.pages().items():
        page = path.read_text(encoding="utf-8")
        assert reward_pages.filled(page, name) == page, name


@pytest.mark.parametrize("name", REGISTRY)
def test_what_a_reward_says_of_itself_stands_on_its_page(name):
    spec, page = REGISTRY[name], page_of(name)
    for text in (spec.unit, spec.scale_source, spec.licence):
        assert text in page
    for socket in ("prompt", "reference"):
        tooltip = getattr(spec, socket)
        assert (f"- **{socket}** (socket" in page) == bool(tooltip)
        assert tooltip in page
    for item in spec.inputs:
        assert f"- **{item.name}**" in page and item.tooltip in page


@pytest.mark.parametrize("name", REGISTRY)
def test_every_model_is_named_with_its_files_size_licence_and_source(name):
    page = page_of(name)
    rows = rows_of(page, "What to connect")
    for source in (source for item in REGISTRY[name].inputs for source in item.sources):
        (row,) = [row for row in rows if row[0].rstrip("/") == f"`{source.name}`" and len(row) == 5]
        assert all(file.url in row[1] for file in source.files)
        assert row[2] == (readable_size(source.size) if source.size else "not known")
        assert row[3] == source.licence and source.page in row[4]


@pytest.mark.parametrize("name", results("reward_scales")["rewards"])
def test_measured_ranges_are_those_of_the_results_file(name):
    found = results("reward_scales")["rewards"][name]
    reward, _, variant = name.partition(" (")
    label = variant[:-1] or reward
    (row,) = [
        row
        for row in rows_of(page_of(reward), "Unit and range")
        if row[0] in (label, f"quality {label}")
    ]
    wanted = [found[key] for key in ("mean", "scale", "least", "greatest")]
    assert [float(cell) for cell in row[1:]] == pytest.approx(wanted, rel=0.005)


@pytest.mark.parametrize("name", results("reward_climbs")["rewards"])
def test_a_climb_is_told_with_its_numbers_and_pictures(name):
    found, page = results("reward_climbs")["rewards"][name], page_of(name)
    rows = {row[0]: row[1:] for row in rows_of(page, "How it is gamed")}
    for stage in ("first", "returned", "last"):
        score, gain, judge = map(float, rows[stage])
        assert score == pytest.approx(found[stage]["score"], rel=0.005)
        assert gain == pytest.approx(found[stage]["gain"], abs=0.051)
        assert judge == pytest.approx(found[stage]["judge_gain"], abs=0.051)
    assert f"]({name}.jpg)" in page and f"{found['iterations']} iterations" in page


def test_every_link_between_the_pages_leads_somewhere():
    for page in FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (FOLDER / target).exists(), f"{page.name}: {target}"


def test_the_index_leads_to_every_page():
    index = page_of("README")
    assert all(f"[{name}]({name}.md)" in index for name in REGISTRY)


def test_the_least_sides_of_lpips_are_those_of_its_networks():
    text = "31 pixels for AlexNet, 16 for VGG16, 21 and 18 for their shift-tolerant forms"
    assert text in page_of("lpips")
    least = {layout.label: layout.least for layout in LAYOUTS}
    assert least == {
        "AlexNet": 31,
        "VGG16": 16,
        "shift-tolerant AlexNet": 21,
        "shift-tolerant VGG16": 18,
    }
