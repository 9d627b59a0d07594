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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--comfyui", "0.24.1", "-k", "a or b", "tests/core"],
        ["-k", "a or b", "--comfyui=0.24.1", "tests/core"],
        ["-k", "a or b", "tests/core", "--comfyui", "0.24.1"],
    ],
)
def test_the_version_to_test_against_is_not_for_pytest(
    run: ModuleType, arguments: list[str]
) -> None:
    chosen = run.parse(["test", *arguments])
    assert chosen.comfyui == "0.24.1"
    assert chosen.rest == ["-k", "a or b", "tests/core"]
    assert run.parse(["test"]).comfyui == ""


def test_an_unknown_version_is_refused_with_those_there_are(
    run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.parse(["test", "--comfyui", "0.1"])
    said = capsys.readouterr().err
    assert all(name in said for name in (*run.comfyui.SOURCES, "all"))


def test_all_versions_are_tested_in_turn_and_one_failure_fails(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, list[str]]] = []

    def pytest_against(python: Path, tree: Path, arguments: list[str]) -> int:
        seen.append((tree.name, arguments))
        return 1 if tree.name == run.comfyui.OLDEST else 0

    monkeypatch.setattr(run.environment, "prepare", lambda group: Path("python"))
    monkeypatch.setattr(run.comfyui, "fetch", lambda python, version: Path(version))
    monkeypatch.setattr(run, "pytest_against", pytest_against)
    assert run.main(["test", "--comfyui", "all", "-x"]) == 1
    assert seen == [(version, ["-x"]) for version in run.comfyui.SOURCES]
    said = capsys.readouterr().out
    assert f"ComfyUI {run.comfyui.OLDEST}: failed" in said
    assert f"ComfyUI {run.comfyui.VERSION}: passed" in said
    assert run.main(["test", "--comfyui", run.comfyui.VERSION]) == 0


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
