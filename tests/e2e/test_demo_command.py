"""The README's first command, end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from comfyui_dno.launcher import comfyui
from comfyui_dno.tests.harness import ROOT

KEYS = {
    "reward_before", "reward_after", "iterations", "seconds", "p_z_before", "p_z_after",
    "p_z_percentile_after", "versions",
}  # fmt: skip


def environment() -> dict[str, str]:
    """The user's: COMFYUI_PATH is set only where the tests run on a ComfyUI of the user's own."""
    tree = next(comfyui.places())
    settings = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    return settings if tree == comfyui.cached_tree() else {**settings, "COMFYUI_PATH": str(tree)}


def run_demo(output: Path) -> tuple[str, dict[str, Any], float]:
    """What the command printed, its result.json, and the processor seconds it took."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "run.py", "demo", "--output", str(output)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    after = os.times()
    used = after.children_user + after.children_system
    return done.stdout, result, used - before.children_user - before.children_system


@pytest.mark.slow
def test_the_demo_leaves_three_pictures_and_numbers_that_climbed(tmp_path: Path) -> None:
    printed, result, seconds = run_demo(tmp_path / "out")
    assert set(result) >= KEYS
    assert result["reward_after"] > result["reward_before"]
    assert 1 < result["p_z_percentile_after"] <= 100
    assert result["iterations"] > 0 and result["seconds"] > 0
    assert set(result["versions"]) == {"pack", "comfyui", "torch", "python"}
    pixels = {}
    for name in ("before", "after", "curve"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert min(image.size) >= 256
            pixels[name] = image.convert("RGB").tobytes()
    assert pixels["before"] != pixels["after"]
    assert "Setting up" not in printed, "a set-up that was done before was done again"
    assert seconds < 180, "on one free core these are the seconds a user waits"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_demo_stops_its_server(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "run.py", "demo", "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ComfyUI is up"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Stopped" in printed
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_a_missing_comfyui_path_is_named(tmp_path: Path) -> None:
    settings = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "run.py", "demo"], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "COMFYUI_PATH names" in done.stderr and "Traceback" not in done.stderr
