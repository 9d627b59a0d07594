"""What a user installs: the wheel, the published archive, and an import that costs little."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pathspec
import pytest
from PIL import Image

from comfyui_dno.launcher import comfyui

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("dno_core", "rewards", "nodes")
HEAVY = ("transformers", "open_clip", "diffusers", "timm", "accelerate", "comfy")


def tracked_files() -> list[str]:
    """The files of the checkout: what git knows, and what it would take in."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return sorted({name for name in done.stdout.splitlines() if (ROOT / name).is_file()})
    ignore = spec_of(".gitignore")  # an unpacked archive without git's records
    names = [file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*") if file.is_file()]
    return sorted(name for name in names if not ignore.match_file(name))


def spec_of(file: str) -> pathspec.PathSpec:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return pathspec.PathSpec.from_lines("gitwildmatch", lines)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "pack"
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    command += ["-w", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(target.glob("direct_noise_optimization-*.whl"))


def test_the_wheel_holds_every_room_under_one_import_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ROOMS:
        modules = [name for name in tracked_files() if re.match(rf"{room}/.*\.py$", name)]
        assert modules
        missing = [name for name in modules if f"comfyui_dno/{name}" not in names]
        assert not missing, missing


def test_the_wheel_holds_the_demo_model_the_web_files_the_workflows_and_the_texts(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [
        name
        for name in tracked_files()
        if name.startswith(("web/", "workflows/", "locales/", "icon.png"))
        or re.match(r"demo/(tokenizer/|reward/|judge/|licenses/|[^/]*\.(safetensors|md)$)", name)
    ]
    assert wanted
    assert not [name for name in wanted if f"comfyui_dno/{name}" not in names]


def test_the_wheel_brings_no_other_top_level_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"comfyui_dno"}


def test_an_installed_core_imports_without_comfyui(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from comfyui_dno.dno_core import optimize
import comfyui_dno.rewards
print(optimize.__module__)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[0].startswith("comfyui_dno.dno_core")
    assert done.stdout.splitlines()[1] == "[]"


def test_loading_the_pack_in_comfyui_imports_no_model_library(comfy) -> None:
    code = f"""
import asyncio, importlib.util, sys
sys.path.insert(0, {str(comfy.path)!r})
import comfy.cli_args
comfy.cli_args.args.cpu = True
comfy.cli_args.args.base_directory = {str(comfy.base)!r}
# Stands in for what ComfyUI itself imports: a pack that asks for one of these is found out.
import nodes, comfy.sd, comfy_api.latest
before = set(sys.modules)
class Watch:
    asked = []
    def find_spec(self, name, path=None, target=None):
        self.asked.append(name.split(".")[0])
watch = Watch()
for name in [n for n in sys.modules if n.split(".")[0] in {HEAVY[:-1]!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, watch)
spec = importlib.util.spec_from_file_location(
    "pack_under_test", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
)
pack = importlib.util.module_from_spec(spec)
sys.modules["pack_under_test"] = pack
spec.loader.exec_module(pack)
async def load():
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()
found = asyncio.run(load())
print(len(found))
print(sorted(set(watch.asked) & set({HEAVY[:-1]!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    count, heavy = done.stdout.splitlines()[-2:]
    assert int(count) >= 7
    assert heavy == "[]", f"loading the pack imports {heavy}"


def test_the_published_archive_holds_what_runs_and_nothing_else() -> None:
    ignore = spec_of(".comfyignore")
    kept = [name for name in tracked_files() if not ignore.match_file(name)]
    for wanted in ("__init__.py", "pyproject.toml", "LICENSE", "README.md", "demo/NOTICES.md"):
        assert wanted in kept
    rooms = (*ROOMS, "web/docs/pictures", "workflows", "locales/en", "docs/rewards")
    for room in (*rooms, "demo/reward", "demo/judge", "demo/tokenizer"):
        assert any(name.startswith(room + "/") for name in kept), room
    unwanted = re.compile(
        r"^(run\.py|launcher/|tools/|tests/|benchmarks/|demo/training/|docs/experiments/|\.)"
    )
    assert not [name for name in kept if unwanted.match(name)]


def test_the_pictures_of_the_help_pages_are_small() -> None:
    pictures = [ROOT / name for name in tracked_files() if name.startswith("web/docs/pictures/")]
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000


def test_the_registry_s_security_rules_find_nothing() -> None:
    """What `comfy node validate` runs before a release is published."""
    rules = ["--select", "S102,S307,E702", "--no-cache", "--ignore-noqa"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", ".", "-q", *rules],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_no_requirement_replaces_the_users_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert dependencies is not None
    assert not re.search(r"\btorch(vision|audio)?\b", dependencies.group(1))
    requirements = ROOT / "requirements.txt"
    if requirements.exists():
        assert not re.search(r"^torch", requirements.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_registry_entry_is_complete() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'name = "direct-noise-optimization"' in text
    assert re.search(r'^version = "\d+\.\d+\.\d+"$', text, re.MULTILINE)
    for key in ("PublisherId", "DisplayName", "Icon", "requires-comfyui"):
        assert re.search(rf'^{key} = ".+"$', text, re.MULTILINE), key
    assert f'requires-comfyui = ">={comfyui.OLDEST}"' in text
    repository = re.search(r'^Repository = "https://github.com/(.+)"$', text, re.MULTILINE)
    icon = re.search(r'^Icon = "https://raw.githubusercontent.com/(.+)/main/(.+)"$', text, re.M)
    assert repository and icon and icon[1] == repository[1]
    with Image.open(ROOT / icon[2]) as picture:
        assert picture.size == (400, 400)


def test_python_files_are_ascii() -> None:
    wrong = []
    for name in tracked_files():
        if name.endswith(".py") and not (ROOT / name).read_bytes().isascii():
            wrong.append(name)
    assert not wrong
