"""What a download is to become, and what the user reads when it does not."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..base import RewardError
from .missing import readable_size
from .source import RemoteFile, Source

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Target:
    """One file of a model: what is published, and the path it gets."""

    source: Source
    file: RemoteFile
    place: Path

    @property
    def url(self) -> str:
        """Where to ask: at HF_ENDPOINT, where that names a mirror, for files of huggingface.co."""
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        if endpoint and urlsplit(self.file.url).netloc == urlsplit(_HUB).netloc:
            return endpoint + self.file.url.removeprefix(_HUB)
        return self.file.url

    def by_hand(self, what: str) -> RewardError:
        return RewardError(
            f"{self.source.name}: {what}. Try again later, or get {self.place.name} by hand from "
            f"{self.source.page} and put it into {self.place.parent}."
        )

    def given_up(self, why: str, tries: int, kept: int, size: int) -> RewardError:
        """The error after the last try; kept: bytes that are there, size: of the whole, or 0."""
        what = f"{self.url}: {why}, at the last of {tries} tries"
        if not kept:
            return self.by_hand(what)
        of = f" of {readable_size(size)}" if size else ""
        return RewardError(
            f"{self.source.name}: {what}. {readable_size(kept)}{of} are kept in "
            f"{self.place.name}.part: run again later to go on from there."
        )

    def disk_full(self, size: int) -> RewardError:
        """The error for a full disk, after the partial file was removed; size: of the whole."""
        free = shutil.disk_usage(self.place.parent).free
        lack = f" ({readable_size(size - free)} more)" if size > free else ""
        needs = f": {self.place.name} needs {readable_size(size)}" if size else ""
        return RewardError(
            f"{self.source.name}: the disk of {self.place.parent} is full{needs}; what had come "
            f"was removed. Make room{lack}, or give a folder on another disk in "
            "extra_model_paths.yaml."
        )
