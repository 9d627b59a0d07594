"""Models whose files were cut, swapped or edited: named in plain words, whatever a library says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyui_dno.rewards import RewardError, create


@pytest.fixture
def clip(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "clip"))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def swapped(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html>", encoding="utf-8")


def emptied(file: Path) -> None:
    file.write_text("null", encoding="utf-8")


@pytest.mark.parametrize("spoil", [empty, cut, swapped, emptied])
@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
def test_a_spoilt_file_of_a_folder_is_a_reward_error_that_names_the_folder(
    clip: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(clip / name)
    with pytest.raises(RewardError, match=f"{clip}.* cannot be read|{clip}.* broken"):
        create("clip_score", model=str(clip))


@pytest.mark.parametrize(
    "change", [{"text_config": 0}, {"projection_dim": "x"}, {"vision_config": {"patch_size": 0}}]
)
def test_settings_that_make_no_model_are_a_reward_error_that_names_the_folder(
    clip: Path, change: dict[str, object]
) -> None:
    config = json.loads((clip / "config.json").read_text(encoding="utf-8"))
    (clip / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    for reward in ("clip_score", "clip_similarity"):
        with pytest.raises(RewardError, match=str(clip)):
            create(reward, model=str(clip))


def test_a_library_that_cannot_be_imported_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    with pytest.raises(RewardError, match="needs the Python package open_clip.*open_clip_torch"):
        create("hps", model=str(tmp_path / "HPS_v2.1_compressed.pt"))
