"""Where a downloaded model lies below a models folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..base import RewardError
from .source import RemoteFile, Source


def places(source: Source, root: Path) -> list[tuple[RemoteFile, Path]]:
    """Every file of the model and where it belongs below `root`.

    Raises RewardError for names that would leave the model's own folder.
    """
    if not source.files:
        raise RewardError(
            f"{source.name}: nothing is listed to download. Get it by hand from {source.page}."
        )
    base = _below(root, source.name)
    names = [file.name for file in source.files]
    if names == [""]:
        return [(source.files[0], base)]
    if "" in names or len(set(names)) < len(names):
        raise RewardError(
            f"{source.name}: its files {names} are not named apart. "
            "Correct its entry in the reward that lists it."
        )
    return [(file, _below(base, file.name)) for file in source.files]


def is_complete(source: Source, root: Path) -> bool:
    """Whether every file of the model is there; what is inside is looked at when it is read."""
    return not lacking(source, root)


def lacking(source: Source, root: Path) -> list[Path]:
    """The files of the model that are missing or empty."""
    if not source.files:
        place = _below(root, source.name)
        return [] if place.is_dir() or is_there(place) else [place]
    return [place for _, place in places(source, root) if not is_there(place)]


def is_there(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def locate(source: Source, roots: Iterable[Path]) -> Path | None:
    """The model's file or folder in the first of `roots` that has all of it."""
    return next((root / source.name for root in roots if is_complete(source, root)), None)


def _below(folder: Path, name: str) -> Path:
    parts = name.split("/")
    odd = any(part in ("", ".", "..") or part != part.strip() for part in parts)
    if odd or "\\" in name or ":" in name:
        raise RewardError(
            f"'{name}' is no safe file name for a download. Correct it where the reward lists it."
        )
    return folder.joinpath(*parts)
