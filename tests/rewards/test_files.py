"""The catalogue of downloads, the lines of the model widget, and what is said of missing files."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from comfyui_dno.rewards.base import RewardError
from comfyui_dno.rewards.files import catalogue
from comfyui_dno.rewards.files.missing import (
    choice_source,
    download_choice,
    is_complete,
    locate,
    missing,
    readable_size,
)
from comfyui_dno.rewards.files.places import places
from comfyui_dno.rewards.files.source import RemoteFile, Source

FOLDER = Source(
    "tower",
    (
        RemoteFile("https://example.org/c", "config.json", 10),
        RemoteFile("https://example.org/m", "model.safetensors", 3_944_000_000),
    ),
    "MIT",
    "https://example.org/tower",
)
FILE = Source(
    "head.pth", (RemoteFile("https://example.org/h"),), "Apache-2.0", "https://example.org/head"
)

every_source = pytest.mark.parametrize("source", catalogue.SOURCES, ids=lambda source: source.name)


def put(source: Source, root: Path) -> Path:
    for _, place in places(source, root):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"there")
    return root / source.name


@every_source
def test_a_published_model_can_be_fetched_safely(source: Source) -> None:
    assert source.licence and source.page.startswith("https://")
    for file in source.files:
        assert urlsplit(file.url).scheme == "https"
        assert re.fullmatch(r"[0-9a-f]{64}|", file.sha256)
        assert file.size >= 0 and (file.size > 0 or not file.sha256)
        assert "+" not in file.url


@every_source
def test_a_published_model_has_places_of_its_own(source: Source, tmp_path: Path) -> None:
    found = [place for _, place in places(source, tmp_path)]
    assert len(set(found)) == len(source.files)
    base = tmp_path / source.name
    assert all(place == base or place.parent == base for place in found)


def test_no_two_sources_share_a_name() -> None:
    names = [source.name for source in catalogue.SOURCES]
    assert len(set(names)) == len(names)


@every_source
def test_every_file_but_the_servers_word_is_pinned_to_a_revision(source: Source) -> None:
    for file in source.files:
        on_a_branch = "/main/" in file.url or "/master/" in file.url
        assert not on_a_branch or not file.sha256


@pytest.mark.parametrize(
    ("source", "package", "path"),
    [
        (catalogue.LPIPS_ALEX, "lpips", "weights/v0.1/alex.pth"),
        (catalogue.LPIPS_VGG, "lpips", "weights/v0.1/vgg.pth"),
        (catalogue.LPIPS_ST_ALEX, "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"),
        (catalogue.LPIPS_ST_VGG, "stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth"),
    ],
)
def test_the_pinned_checksums_are_those_of_the_published_packages(
    source: Source, package: str, path: str
) -> None:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    body = (Path(found.origin).parent / path).read_bytes()
    pinned = source.files[-1]
    assert (pinned.size, pinned.sha256) == (len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (3_714_759, "3.7 MB"),
        (99_960_000, "100 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1.0 GB"),
        (3_944_437_764, "3.9 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_sizes_read_as_on_a_models_page(size: int, text: str) -> None:
    assert readable_size(size) == text


def test_a_download_line_says_name_size_and_licence() -> None:
    assert download_choice(FOLDER) == "download tower (3.9 GB, MIT)"
    assert download_choice(FILE) == "download head.pth (Apache-2.0)"


def test_a_download_line_finds_its_source_also_after_size_or_licence_changed() -> None:
    sources = (FOLDER, FILE)
    for source in sources:
        assert choice_source(download_choice(source), sources) is source
    assert choice_source("download tower (2.0 GB, GPL)", sources) is FOLDER
    assert choice_source("download tower", sources) is FOLDER
    for text in ("tower", "head.pth", "download", "download tower2 (MIT)", ""):
        assert choice_source(text, sources) is None


@every_source
def test_every_published_model_is_found_by_its_own_line(source: Source) -> None:
    assert choice_source(download_choice(source), catalogue.SOURCES) is source


def test_a_folder_is_complete_only_with_all_of_its_files(tmp_path: Path) -> None:
    folder = put(FOLDER, tmp_path)
    assert is_complete(FOLDER, tmp_path)
    (folder / "config.json").write_bytes(b"")
    assert not is_complete(FOLDER, tmp_path)
    (folder / "config.json").unlink()
    assert not is_complete(FOLDER, tmp_path)


def test_a_model_is_located_in_the_first_folder_that_has_all_of_it(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a", "b", "c")]
    assert locate(FOLDER, roots) is None
    (roots[0] / "tower").mkdir(parents=True)
    put(FOLDER, roots[2])
    assert locate(FOLDER, roots) == roots[2] / "tower"
    put(FOLDER, roots[1])
    assert locate(FOLDER, roots) == roots[1] / "tower"


def test_a_missing_model_gives_name_folder_source_and_the_line_to_choose(tmp_path: Path) -> None:
    error = missing(FOLDER, "tower", tmp_path, "PickScore")
    assert isinstance(error, RewardError)
    assert str(error) == (
        f"PickScore: tower is not in {tmp_path}. Choose 'download tower (3.9 GB, MIT)' in the "
        "model widget of Reward Loader, or put it there by hand from https://example.org/tower."
    )


def test_a_model_that_is_there_in_part_gives_what_it_lacks(tmp_path: Path) -> None:
    (put(FOLDER, tmp_path) / "model.safetensors").unlink()
    assert "tower in" in (text := str(missing(FOLDER, "tower", tmp_path, "PickScore")))
    assert "lacks model.safetensors." in text


def test_a_model_that_is_only_to_be_had_by_hand_is_found_and_missed_by_its_name(
    tmp_path: Path,
) -> None:
    source = Source("hand.pt", (), "CC-BY-NC-4.0", "https://example.org/hand")
    assert str(missing(source, "hand.pt", tmp_path, "HPS v2")) == (
        f"HPS v2: hand.pt is not in {tmp_path}. Get it by hand from https://example.org/hand "
        "(CC-BY-NC-4.0) and put it there, or choose another one in the model widget of "
        "Reward Loader."
    )
    assert locate(source, [tmp_path]) is None
    (tmp_path / "hand.pt").write_bytes(b"there")
    assert locate(source, [tmp_path]) == tmp_path / "hand.pt"


def test_a_missing_file_of_the_users_own_gives_name_and_folder(tmp_path: Path) -> None:
    assert str(missing(None, "mine.pt", tmp_path, "HPS v2")) == (
        f"HPS v2: mine.pt is not in {tmp_path}. "
        "Put it there, or choose another one in the model widget of Reward Loader."
    )


def test_a_reward_for_which_no_model_is_there_to_choose_says_where_to_put_one(
    tmp_path: Path,
) -> None:
    assert str(missing(None, "", tmp_path, "Faces")).startswith(
        f"Faces: there is no model for it in {tmp_path}. Put one there"
    )
