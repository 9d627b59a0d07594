"""What the user reads about a model that is not there, and the download they can choose."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..base import RewardError
from .places import is_complete, lacking, locate
from .source import Source

__all__ = [
    "choice_source",
    "download_choice",
    "is_complete",
    "locate",
    "missing",
    "readable_size",
]

_UNITS = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9))


def readable_size(size: int) -> str:
    """Bytes in decimal units, as file managers and model pages show them: '3.9 GB'."""
    if size < 1000:
        return f"{size} bytes"
    unit, factor = next(
        ((unit, factor) for unit, factor in _UNITS if size < 999.5 * factor), _UNITS[-1]
    )
    value = size / factor
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def download_choice(source: Source) -> str:
    """The line in the model widget that downloads the model: name, size if known, licence."""
    facts = [readable_size(source.size)] if source.size else []
    facts += [source.licence] if source.licence else []
    return f"download {source.name}" + (f" ({', '.join(facts)})" if facts else "")


def choice_source(text: str, sources: Iterable[Source]) -> Source | None:
    """The source that a download line stands for, also one saved with another size or licence."""
    for source in sources:
        bare = f"download {source.name}"
        if text == bare or (text.startswith(f"{bare} (") and text.endswith(")")):
            return source
    return None


def missing(source: Source | None, name: str, folder: Path, reward: str) -> RewardError:
    """The error for a model that is not (wholly) in `folder`: what to do, and where it is from."""
    if not name:
        return RewardError(
            f"{reward}: there is no model for it in {folder}. Put one there and press R in ComfyUI "
            "to have it listed in the model widget of Reward Loader."
        )
    if source is None:
        return RewardError(
            f"{reward}: {name} is not in {folder}. "
            "Put it there, or choose another one in the model widget of Reward Loader."
        )
    if not source.files:
        return RewardError(
            f"{reward}: {name} is not in {folder}. Get it by hand from {source.page} "
            f"({source.licence}) and put it there, or choose another one in the model widget of "
            "Reward Loader."
        )
    absent = lacking(source, folder)
    what = f"{name} is not in {folder}"
    if len(absent) < len(source.files):
        what = f"{name} in {folder} lacks {', '.join(path.name for path in absent)}"
    return RewardError(
        f"{reward}: {what}. Choose '{download_choice(source)}' in the model widget of "
        f"Reward Loader, or put it there by hand from {source.page}."
    )
