"""The private environment: installed once, resumed after an interruption, checked before use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from comfyui_dno.launcher import environment
from comfyui_dno.launcher.terminal import Problem


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An environment in a temporary folder whose installation steps only leave their title."""
    done: list[str] = []

    def make() -> None:
        environment.venv_python().parent.mkdir(parents=True, exist_ok=True)
        environment.venv_python().touch()

    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "CONSTRAINTS", tmp_path / "constraints.txt")
    (tmp_path / "constraints.txt").write_text("torch==1\n", encoding="utf-8")
    monkeypatch.setattr(environment, "_make_venv", make)
    monkeypatch.setattr(
        environment, "_install", lambda title, packages, expected: done.append(title)
    )
    for name in ("_install_kitchen", "_repair_cpu_quirks"):
        monkeypatch.setattr(environment, name, lambda: None)
    monkeypatch.setattr(environment, "_check_imports", lambda group: None)
    return done


def test_a_second_set_up_installs_nothing(steps: list[str]) -> None:
    environment.prepare("run")
    assert steps
    steps.clear()
    environment.prepare("run")
    assert steps == []


def test_what_the_tests_need_includes_what_the_demo_needs(steps: list[str]) -> None:
    environment.prepare("test")
    assert "Test tools" in steps
    steps.clear()
    environment.prepare("run")
    assert steps == []


def test_the_demo_alone_does_not_install_the_test_tools(steps: list[str]) -> None:
    environment.prepare("run")
    assert "Test tools" not in steps
    environment.prepare("test")
    assert "Test tools" in steps


def test_an_interrupted_set_up_is_taken_up_again(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(title: str, packages: tuple[str, ...], expected: int) -> None:
        steps.append(title)
        if title == "PyTorch":
            raise KeyboardInterrupt

    keep = environment._install
    monkeypatch.setattr(environment, "_install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare("run")
    assert steps == ["Installer", "PyTorch"]
    monkeypatch.setattr(environment, "_install", keep)
    steps.clear()
    environment.prepare("run")
    assert "PyTorch" in steps and "ComfyUI's packages" in steps


def test_changed_constraints_are_installed(steps: list[str]) -> None:
    environment.prepare("run")
    steps.clear()
    environment.CONSTRAINTS.write_text("torch==2\n", encoding="utf-8")
    environment.prepare("run")
    assert steps


def test_packages_that_do_not_import_are_reported_with_a_way_out(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(group: str) -> None:
        raise Problem("The installed packages do not start. Delete the folder .venv.")

    monkeypatch.setattr(environment, "_check_imports", broken)
    with pytest.raises(Problem, match="Delete the folder"):
        environment.prepare("run")
    assert not environment._is_stamped("run")


def test_every_package_that_is_installed_by_name_is_pinned() -> None:
    for package in (
        *environment.BASICS,
        *environment.TORCH,
        *environment.TORCH_COMPANIONS,
        *environment.RUN,
        *environment.TEST,
        environment.KITCHEN,
    ):
        assert "==" in environment.pinned(package)


def test_a_package_without_a_pin_is_an_error_that_names_it() -> None:
    with pytest.raises(Problem, match="nonexistent-package"):
        environment.pinned("nonexistent-package")


def test_an_interpreter_without_the_packages_is_not_taken_for_complete(tmp_path: Path) -> None:
    import sys

    assert environment.is_complete(sys.executable, "run")
    assert not environment.is_complete(tmp_path / "no-python-here", "run")


def test_the_cpu_repair_leaves_a_healthy_installation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "torchaudio" / "lib" / "_torchaudio.abi3.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "torchaudio" / "__init__.py").write_text("", encoding="utf-8")
    init = tmp_path / "torchvision" / "__init__.py"
    init.parent.mkdir()
    init.write_text("good = True\n", encoding="utf-8")
    use_interpreter_that_sees(tmp_path, monkeypatch)
    environment._repair_cpu_quirks()
    assert library.exists() and init.read_text(encoding="utf-8") == "good = True\n"


def test_the_cpu_repair_mends_the_two_known_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(
        "class library:\n"
        "    class Library:\n"
        "        made = set()\n"
        "        def __init__(self, *_): pass\n"
        "        def define(self, text): self.made.add(text.split('(')[0])\n",
        encoding="utf-8",
    )
    init = tmp_path / "torchvision" / "__init__.py"
    init.parent.mkdir()
    init.write_text(
        "from torch import library\n"
        "if library.Library.made != {'nms', 'qnms'}:\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n",
        encoding="utf-8",
    )
    audio = tmp_path / "torchaudio"
    (audio / "lib").mkdir(parents=True)
    (audio / "lib" / "_torchaudio.abi3.so").touch()
    (audio / "__init__.py").write_text(
        "import pathlib\n"
        "if (pathlib.Path(__file__).parent / 'lib' / '_torchaudio.abi3.so').exists():\n"
        "    raise OSError('libcudart')\n",
        encoding="utf-8",
    )
    python = use_interpreter_that_sees(tmp_path, monkeypatch)
    environment._repair_cpu_quirks()
    assert environment._run([python, "-c", "import torchvision, torchaudio"]).returncode == 0


def use_interpreter_that_sees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the launcher use this interpreter, with `folder` in front of its packages."""
    import sys

    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(environment, "venv_python", lambda: Path(sys.executable))
    return Path(sys.executable)


def test_every_pin_admits_the_python_it_is_for() -> None:
    """A pin without a marker is for 3.10 too, so its package must not ask for a newer one."""
    from importlib import metadata

    from packaging.requirements import Requirement

    lines = (environment.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.strip() or line.startswith("#") or ";" in line:
            continue
        name = Requirement(line).name
        try:
            asks = metadata.metadata(name).get("Requires-Python") or ""
        except metadata.PackageNotFoundError:
            continue
        assert not re.search(r">=?\s*3\.1[1-9]", asks), f"{line} asks for Python {asks}"
