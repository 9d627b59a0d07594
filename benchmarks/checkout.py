"""What a benchmark script starts with: this checkout as a package, and ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def map_pack() -> None:
    """Make the checkout importable as comfyui_dno, unless it is already."""
    if "comfyui_dno" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "comfyui_dno", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_dno"] = pack
    spec.loader.exec_module(pack)


def start_comfyui(gpu: bool = False) -> None:
    """Put the pack and ComfyUI on the import path, unless they are there; on the CPU or a GPU."""
    map_pack()
    if "comfy" in sys.modules:
        return
    from comfyui_dno.launcher import comfyui

    tree = next(comfyui.places(), None)
    if tree is None:
        sys.exit("No ComfyUI was found. Set COMFYUI_PATH, or run: python run.py demo")
    sys.path.insert(0, str(tree))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not gpu
    comfy.cli_args.args.base_directory = tempfile.mkdtemp(prefix="dno-benchmark-")
    if not gpu:
        torch.set_num_threads(1)
