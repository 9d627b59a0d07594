"""run.py's command line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def run() -> ModuleType:
    sys.path.insert(0, str(ROOT))
    try:
        spec = importlib.util.spec_from_file_location("dno_run", ROOT / "run.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT))
    return module


def test_arguments_after_test_go_to_pytest_as_they_are(run: ModuleType) -> None:
    assert run.parse(["test", "-k", "a or b", "--lf", "tests/core"]).rest == [
        "-k",
        "a or b",
        "--lf",
        "tests/core",
    ]


def test_the_demo_writes_to_dno_demo_unless_told(run: ModuleType) -> None:
    assert run.parse(["demo"]).output == Path("dno-demo")
    assert run.parse(["demo", "--output", "x"]).output == Path("x")


def test_a_mistyped_option_is_refused(run: ModuleType) -> None:
    with pytest.raises(SystemExit):
        run.parse(["demo", "--outputs", "x", "--wrong"])


def test_a_problem_ends_with_its_text_and_no_traceback(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(output: Path, gpu: bool) -> int:
        raise run.Problem("It rains. Take an umbrella.")

    monkeypatch.setattr(run, "run_demo", fails)
    assert run.main(["demo"]) == 1
    assert capsys.readouterr().err.strip() == "It rains. Take an umbrella."


def test_an_interrupt_says_how_to_go_on(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(output: Path, gpu: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_demo", stopped)
    assert run.main(["demo"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_run_py_needs_the_standard_library_only() -> None:
    code = "import run, sys; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = {name.strip(" '[]\n") for name in done.stdout.split(",")}
    assert not {
        n for n in names - {"run", "launcher"} if n not in sys.stdlib_module_names and n[0] != "_"
    }
