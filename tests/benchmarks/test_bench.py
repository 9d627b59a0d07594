"""The benchmark command: every benchmark runs in small, and what it finds is read right."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "bench", "checkout", "demo_run", "gpu_parts", "gpu_parts.tables", "iteration", "live_bytes",
    "memory", "published", "readme_tables", "writing",
)  # fmt: skip


@pytest.fixture(scope="module")
def scripts(comfy: Any) -> Iterator[dict[str, ModuleType]]:
    """The scripts in benchmarks/, which find each other as they do when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in SCRIPTS:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_a_run_is_timed_beside_the_published_algorithm_turn_by_turn(scripts: Any) -> None:
    iteration = scripts["iteration"]
    taken = iteration.turns(2, 2, "recompute", whole=True)
    assert {len(values) for values in taken.values()} == {2}
    assert min(min(values) for values in taken.values()) > 0
    found = iteration.summary(taken)
    assert set(found["waste_seconds"]) == {field.name for field in iteration.WASTES}
    assert "| 2 | recompute |" in iteration.table({"2": {"recompute": found}})


def test_the_published_gradient_is_the_gradient_of_the_node(scripts: Any) -> None:
    assert scripts["iteration"].gradient_difference(3) < 1e-4


def test_the_ratio_is_that_of_the_middle_turn(scripts: Any) -> None:
    taken = {"ours": [1.0, 2.0, 1.0], "published": [3.0, 4.0, 9.0]}
    assert scripts["iteration"].summary(taken)["ratio"] == 3.0


def test_live_bytes_count_what_is_made_until_it_is_freed(scripts: Any) -> None:
    weights = torch.ones(1000)
    with scripts["live_bytes"].LiveBytes() as live:
        weights.view(10, 100)
        weights.add_(1)
        assert live.live == 0
        made = weights * 2
        more = made[:10]
        assert live.live == live.peak == 4000
        del made
        assert live.live == 4000
        del more
        assert live.live == 0 and live.peak == 4000
        leaf = torch.ones(1000, requires_grad=True)
        live.restart()
        (leaf.exp() * 2).sum().backward()
        assert live.peak >= 4000 + 2 * 4000
    assert live.live == 2 * 4000  # the leaf and its gradient


def test_more_steps_take_no_more_memory_unless_graphs_are_kept(scripts: Any) -> None:
    peak = scripts["memory"].peak
    few, many = peak("recompute", 2, 1), peak("recompute", 12, 1)
    assert few > 5 and many < 1.1 * few
    assert peak("store", 12, 1) > 1.5 * peak("store", 2, 1)


def test_the_published_algorithm_is_measured_too(scripts: Any) -> None:
    assert scripts["memory"].peak("published", 2, 1) > 5


def test_every_benchmark_ends_in_rows_of_one_table(scripts: Any) -> None:
    bench = scripts["bench"]
    assert list(bench.PARTS) == list("abcde")
    results = {"b": {"speed_up": 6.2}}
    for key in "acde":
        file = bench.RESULTS / bench.PARTS[key].result
        results[key] = json.loads(file.read_text(encoding="utf-8"))
    for key, part in bench.PARTS.items():
        assert (ROOT / "benchmarks" / part.script).is_file()
        rows = part.rows(results[key])
        assert rows and all(row.what and row.found for row in rows)
        assert all(row.what in bench.table({key: rows}) for row in rows)


def test_a_missed_target_is_said(scripts: Any) -> None:
    bench = scripts["bench"]
    rows = bench.iteration_rows({"steps": {"50": {"store": {"ratio": 1.5}}}})
    assert rows[0].met is False and "MISSED" in bench.table({"a": rows})
    rows = bench.iteration_rows({"steps": {"50": {"store": {"ratio": 2.5}}}})
    assert rows[0].met is True and "met" in bench.table({"a": rows})


def test_the_command_runs_the_regularizer_in_small_and_keeps_nothing(scripts: Any) -> None:
    kept = ROOT / "benchmarks" / "results" / "regularizer.json"
    before = kept.read_bytes()
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--quick", "--only", "d"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(d\) +loop / ours, structured permutations +\d", done.stdout)
    assert kept.read_bytes() == before


def test_a_benchmark_that_fails_is_a_row_and_the_exit_status(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = scripts["bench"]
    broken = bench.Part("nothing", "no_such_script.py", "x.json", lambda result: [])
    monkeypatch.setitem(bench.PARTS, "d", broken)
    assert bench.main(["--quick", "--only", "d"]) == 1
    assert "no_such_script.py" in capsys.readouterr().out


def test_the_pages_show_the_committed_numbers(scripts: Any) -> None:
    tables = scripts["readme_tables"]
    for path in tables.PAGES:
        page = path.read_text(encoding="utf-8")
        assert tables.filled(page) == page, "run: python benchmarks/readme_tables.py"
    assert "| 50 " in tables.PAGES[1].read_text(encoding="utf-8")


def test_blocks_of_other_pages_are_left_alone(scripts: Any) -> None:
    page = "<!-- generated: something -->\nkept\n<!-- end -->"
    assert scripts["readme_tables"].filled(page) == page
