"""What every test starts from: the pack under its import name, one thread, a ComfyUI in-process."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # two threads on two busy cores spin: 30 times slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui_dno"

torch.set_num_threads(1)


def map_pack(name: str = PACK, root: Path = ROOT) -> types.ModuleType:
    """Import the checkout at `root` as the package `name`, without installing it."""
    if name in sys.modules:
        return sys.modules[name]
    # "python -m pytest" puts the checkout on sys.path, where our `nodes` would hide ComfyUI's.
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != root]
    spec = importlib.util.spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (root / "__init__.py").is_file():
        spec.loader.exec_module(module)
    return module


map_pack()


def find_comfyui() -> Path | None:
    """The ComfyUI tree of run.py: COMFYUI_PATH, the enclosing one, or the one in the cache."""
    from comfyui_dno.launcher import comfyui

    return next((tree.resolve() for tree in comfyui.places()), None)


@dataclass(frozen=True)
class Comfy:
    """The ComfyUI imported into this process.

    path: its tree. base: its private base directory (models, input, output, temp, user).
    device: "cpu", or "cuda" under `-m gpu`.
    """

    path: Path
    base: Path
    device: str


def _asks_for_gpu(config: pytest.Config) -> bool:
    return str(config.getoption("-m", default="")).strip() == "gpu" and torch.cuda.is_available()


@pytest.fixture(scope="session")
def comfy(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Comfy]:
    """ComfyUI on sys.path and set to the CPU; import `comfy`, `nodes`, `execution` after it."""
    tree = find_comfyui()
    if tree is None:
        pytest.fail("No ComfyUI was found. Run the tests with: python run.py test", pytrace=False)
    base = tmp_path_factory.mktemp("comfyui_base")
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir()
    on_gpu = _asks_for_gpu(request.config)
    sys.path.insert(0, str(tree))
    for name in ("nodes", "execution", "server", "utils"):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and tree not in Path(origin).resolve().parents:
            del sys.modules[name]
    import comfy.cli_args  # its parser sees no arguments unless main.py asks for them

    args = comfy.cli_args.args
    args.cpu = not on_gpu
    args.base_directory = str(base)
    args.disable_api_nodes = True
    args.database_url = "sqlite:///:memory:"
    torch.set_num_threads(1)
    yield Comfy(path=tree, base=base, device="cuda" if on_gpu else "cpu")


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "gpu: needs an NVIDIA GPU; run alone with -m gpu, which lets ComfyUI use it",
        "browser: needs Chromium; fails instead of skipping where CI=true",
        "slow: takes more than about 20 seconds on one core",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_what_this_comfyui_lacks(config, items)
    has_cuda = torch.cuda.is_available()
    no_gpu = "no NVIDIA GPU on this machine" if not has_cuda else "runs alone, with: -m gpu"
    for item in items:
        if item.get_closest_marker("gpu") and not _asks_for_gpu(config):
            item.add_marker(pytest.mark.skip(reason=no_gpu))


LEFT_OUT = pytest.StashKey[Counter[str]]()


def _leave_out_what_this_comfyui_lacks(config: pytest.Config, items: list[pytest.Item]) -> None:
    from comfyui_dno.tests.versions import left_out, unmet

    tree = find_comfyui()
    needs = unmet(tree) if tree is not None else ()
    missing = [(item, need) for item in items if (need := left_out(item, needs)) is not None]
    if missing:
        config.hook.pytest_deselected(items=[item for item, _ in missing])
        items[:] = [item for item in items if left_out(item, needs) is None]
    config.stash[LEFT_OUT] = Counter(
        f"ComfyUI {need.version} or newer: {need.what}" for _, need in missing
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, count in config.stash.get(LEFT_OUT, Counter()).items():
        terminalreporter.write_line(f"{count} tests left out, they need {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    from comfyui_dno.tests.chromium import find_chromium

    if item.get_closest_marker("browser") and find_chromium() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is missing. Install it: apt-get install chromium", pytrace=False)
        pytest.skip("Chromium is not installed; it opens the workflows as a user would see them")
