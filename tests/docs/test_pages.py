"""The pages a reader opens first: their links, and the messages they quote."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    outer = [*ROOT.glob("*.md")]  # an unpacked archive without git's records
    rooms = ("docs", "demo", "web", "benchmarks", "tests")
    return outer + [page for room in rooms for page in (ROOT / room).rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_relative_link_leads_somewhere() -> None:
    assert len(pages()) > 30
    for page in pages():
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{page.relative_to(ROOT)}: {link}"


def said_by_the_code() -> list[str]:
    """Every text in the code, with a mark where a value goes."""
    texts = []
    for room in ("dno_core", "nodes", "rewards"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    texts.append("".join(p if isinstance(p, str) else "\0" for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


@pytest.mark.parametrize(("name", "least"), [("docs/troubleshooting.md", 40), ("README.md", 5)])
def test_every_message_that_a_page_explains_is_one_of_the_code(name: str, least: int) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    messages = re.findall(r"\*\*`([^`]+)`\*\*", page)
    assert len(messages) >= least
    texts = said_by_the_code()
    for message in messages:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")))
        assert any(pattern.search(text) for text in texts), message


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].strip() for line in lines[:6] if line.startswith("    ")]
    assert commands == ["python run.py demo", "python run.py test"]


def test_the_readme_names_every_template_node_and_reward_group() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for workflow in (ROOT / "workflows").glob("*.json"):
        assert f"| {workflow.stem} |" in readme, workflow.stem
    locale = (ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in readme.splitlines() if line.startswith("| ")]
    listed = {name for row in rows for name in row.split(", ")}
    assert {node["display_name"] for node in json.loads(locale).values()} <= listed
