"""The README's third command: the first-light workflow lies open in the browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui_dno.launcher import comfyui
from comfyui_dno.tests.harness import ROOT, open_url


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address that `run.py ui` prints."""
    settings = {**os.environ, "DNO_CACHE": str(tmp_path)}
    settings["COMFYUI_PATH"] = str(next(comfyui.places()))
    process = subprocess.Popen(
        [sys.executable, "-u", "run.py", "ui", "--no-browser"],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if found := re.match(r"Open (http://\S+)", line):
                yield found.group(1)
                break
        else:
            pytest.fail(printed)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


@pytest.mark.browser
@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_the_printed_address_opens_first_light(address: str) -> None:
    with open_url(address) as page:
        page.wait_for_function(
            "() => window.app?.graph?._nodes?.some(node => node.type === 'DNO_Sampler')",
            timeout=90_000,
        )
        types = page.evaluate("() => window.app.graph._nodes.map(node => node.type)")
    assert "DNO_DemoModel" in types and "KSampler" in types
