"""Which ComfyUI is used, and how the pinned one is fetched."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from comfyui_dno.launcher import comfyui
from comfyui_dno.launcher.terminal import Problem

PREFIX = comfyui.SOURCES[comfyui.VERSION].prefix


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("DNO_CACHE", str(tmp_path / "cache"))


def make_tree(path: Path, version: str = "0.30.0") -> Path:
    path.mkdir(parents=True)
    (path / "main.py").touch()
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return path


def make_archive(path: Path, names: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(PREFIX + "link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_comfyui_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "mine")
    make_tree(comfyui.cached_tree())
    monkeypatch.setenv("COMFYUI_PATH", str(tree))
    assert list(comfyui.places()) == [tree, comfyui.cached_tree()]


def test_a_wrong_comfyui_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nothing"))
    with pytest.raises(Problem, match="COMFYUI_PATH names .*nothing"):
        comfyui.own_tree()


def test_the_comfyui_around_the_pack_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(tmp_path / "ComfyUI")
    pack = tree / "custom_nodes" / "direct-noise-optimization"
    monkeypatch.setattr(comfyui, "ROOT", pack)
    assert comfyui.own_tree() == tree


def test_an_older_comfyui_is_refused_with_its_version(tmp_path: Path) -> None:
    oldest = comfyui.OLDEST.replace(".", r"\.")
    with pytest.raises(Problem, match=rf"is 0\.9\.12, and the pack needs {oldest} or newer"):
        comfyui.check_version(make_tree(tmp_path / "old", "0.9.12"))
    comfyui.check_version(make_tree(tmp_path / "oldest", comfyui.OLDEST))
    comfyui.check_version(make_tree(tmp_path / "new", "0.100.0"))


def test_the_oldest_and_the_usual_version_can_be_fetched() -> None:
    assert {comfyui.OLDEST, comfyui.VERSION} <= comfyui.SOURCES.keys()
    assert all(len(source.sha256) == 64 for source in comfyui.SOURCES.values())


def test_another_version_is_fetched_beside_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = make_tree(comfyui.cached_tree())
    source = comfyui.SOURCES[comfyui.OLDEST]
    names = {source.prefix + name: b"x" for name in ("main.py", "comfyui_version.py")}
    asked = []

    def download(python: Path, folder: Path, version: str) -> Path:
        asked.append(version)
        return make_archive(tmp_path / "a.tar.gz", names)

    monkeypatch.setattr(comfyui, "_download", download)
    tree = comfyui.fetch(Path("python"), comfyui.OLDEST)
    assert asked == [comfyui.OLDEST] and tree != usual
    assert sorted(file.name for file in tree.rglob("*")) == ["comfyui_version.py", "main.py"]
    assert list(comfyui.places()) == [usual]


def test_the_fetched_tree_holds_the_plain_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        PREFIX + "main.py": b"x",
        PREFIX + "comfyui_version.py": b'__version__ = "0.30.0"',
        PREFIX + "../escaped.py": b"x",
        PREFIX.split("/")[0] + "/other.py": b"x",
    }
    archive = make_archive(tmp_path / "a.tar.gz", names)
    monkeypatch.setattr(comfyui, "_download", lambda *_: archive)
    tree = comfyui.fetch(Path("python"))
    assert tree == comfyui.cached_tree()
    assert sorted(file.name for file in tree.rglob("*")) == ["comfyui_version.py", "main.py"]
    assert sorted(path.name for path in tree.parent.iterdir()) == [tree.name]


def test_a_fetched_tree_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(comfyui.cached_tree())
    monkeypatch.setattr(comfyui, "_download", lambda *_: pytest.fail("downloaded again"))
    assert comfyui.fetch(Path("python")) == comfyui.cached_tree()


def test_an_interrupted_fetch_leaves_no_half_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {PREFIX + "main.py": b"x"})
    monkeypatch.setattr(comfyui, "_download", lambda *_: archive)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comfyui.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comfyui.fetch(Path("python"))
    assert list(comfyui.cache_dir().iterdir()) == []


def test_a_file_with_the_wrong_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "comfy.tar.gz", {})

    class Done:
        returncode, stdout = 0, ""

    monkeypatch.setattr(comfyui.subprocess, "run", lambda *_, **__: Done())
    with pytest.raises(Problem, match="not the expected file"):
        comfyui._download(Path("python"), tmp_path, comfyui.VERSION)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(comfyui.SOURCES, comfyui.VERSION, comfyui.Source("2.6.0", digest))
    assert comfyui._download(Path("python"), tmp_path, comfyui.VERSION) == archive


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode, stdout = 1, "no route to host"

    monkeypatch.setattr(comfyui.subprocess, "run", lambda *_, **__: Done())
    with pytest.raises(Problem, match="Check the network(.|\n)*no route to host"):
        comfyui._download(Path("python"), tmp_path, comfyui.VERSION)
