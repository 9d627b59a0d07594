"""What starting the pack loads: no model library before a reward that needs it is made."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("diffusers", "lpips", "open_clip", "requests", "timm", "torchvision", "transformers")

START = """
import importlib, importlib.util, pkgutil, sys

root, heavy = sys.argv[1], set(sys.argv[2].split())
spec = importlib.util.spec_from_file_location(
    "comfyui_dno", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["comfyui_dno"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
import torch
before = heavy & set(sys.modules)
"""


def loaded_by(code: str) -> set[str]:
    """Which of the heavy libraries that code loads in a process of its own."""
    code = START + textwrap.dedent(code) + "\nprint(*(heavy & set(sys.modules)) - before)"
    command = [sys.executable, "-c", code, str(ROOT), " ".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_listing_the_rewards_loads_no_model_library():
    code = """
        from comfyui_dno import rewards
        assert len(rewards.names()) > 5
        rewards.create("brightness")
    """
    assert loaded_by(code) == set()


def test_no_module_of_the_rewards_loads_one_by_being_imported():
    code = """
        from comfyui_dno import rewards
        found = list(pkgutil.walk_packages(rewards.__path__, "comfyui_dno.rewards."))
        assert len(found) > 20
        for module in found:
            importlib.import_module(module.name)
    """
    assert loaded_by(code) == set()


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_a_library_that_was_loaded_would_be_noticed(library):
    assert library in loaded_by(f"import {library}")
