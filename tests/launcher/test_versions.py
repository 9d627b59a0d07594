"""The table of what older ComfyUI versions lack: it names tests that exist, and only leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_dno.launcher import comfyui
from comfyui_dno.tests.versions import NEEDS, left_out, unmet

ROOT = Path(__file__).resolve().parent.parent.parent


def tree_of(folder: Path, version: str) -> Path:
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return folder


def test_every_test_of_the_table_exists() -> None:
    for need in NEEDS:
        for name in need.tests:
            file, test = name.split("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test.split('[')[0]}(" in text, name


def test_nothing_is_left_out_of_the_version_that_is_tested_always(tmp_path: Path) -> None:
    assert unmet(tree_of(tmp_path, comfyui.VERSION)) == ()
    assert all(comfyui.numbers(need.version) <= comfyui.numbers(comfyui.VERSION) for need in NEEDS)


def test_an_older_version_leaves_out_what_it_lacks_and_no_more(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    needs = unmet(tree_of(tmp_path, comfyui.OLDEST))
    assert needs
    assert left_out(request.node, needs) is None
