"""The toy of the DNO tutorial through the benchmark's own command (one seed, 200 particles)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).resolve().parents[2] / "benchmarks" / "toy.py"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "iterations"), [("gradient", 100), ("hybrid_2", 250)])
def test_the_toy_climbs_as_the_published_one_does(
    tmp_path: Path, method: str, iterations: int
) -> None:
    """Starts where plain ring data is, gains at least 80 % of what was published (1.552 + 0.325;
    for Hybrid-2 1.080 + 0.306), rising throughout."""
    output = tmp_path / "toy.json"
    command = [sys.executable, str(TOY), "--quick", "--method", method, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text(encoding="utf-8"))["targets"]
    assert found["start_standard_errors_from_ring"] < 3, found
    assert found["share_of_published_gain"] >= 0.8, found
    assert found["rising"], found
    rows = output.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "iteration,seed 0" and len(rows) == iterations + 2
