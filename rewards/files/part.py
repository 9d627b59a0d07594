"""A file on its way: NAME.part, and beside it NAME.part.json, which says what it is a part of."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from ..heartbeat import heartbeat
from .stream import Answer

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Note:
    """What the server said of the file. validator: a strong ETag or Last-Modified, for If-Range."""

    url: str = ""
    validator: str = ""
    total: int = 0
    sha256: str = ""


class Part:
    """The bytes that are there. size, sha256: of them. note: of the file they belong to.

    Open as a context manager; what is there stays when it is left, until `finish` or `remove`.
    """

    def __init__(self, place: Path, url: str, pinned: bool) -> None:
        self.place = place
        self.path = place.with_name(place.name + ".part")
        self._note_path = place.with_name(place.name + ".part.json")
        self.note = self._read_note()
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._pinned = pinned
        self.resumed = False
        if self.note.url != url or not self._can_resume():
            self.remove()

    def __enter__(self) -> Part:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self._file = self.path.open("r+b")
        self._take_up(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and not self.size:
            self.remove()
        self._close()

    def _can_resume(self) -> bool:
        """Whether a file that has changed meanwhile would be noticed."""
        return self._pinned or self.note.validator != ""

    def _take_up(self, file: BinaryIO) -> None:
        """Hash what is there already."""
        while block := file.read(_BLOCK):
            heartbeat()
            self._hash.update(block)
            self.size += len(block)
        self.resumed = self.size > 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def range_headers(self) -> dict[str, str]:
        """What asks for the rest only, and for all of it where the file has changed since."""
        if not self.size:
            return {}
        if not self._can_resume():
            self.restart()
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        return headers | ({"If-Range": self.note.validator} if self.note.validator else {})

    def begin(self, url: str, answer: Answer, total: int) -> None:
        """Note what is coming, before its first byte is written."""
        self.resumed = self.size > 0
        validator = _validator(answer) or (self.note.validator if self.size else "")
        self.note = Note(url, validator, total, _linked_sha256(answer))
        self._note_path.write_text(json.dumps(asdict(self.note)), encoding="utf-8")

    def write(self, chunk: bytes) -> None:
        assert self._file is not None
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget the bytes that are there."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self.size, self._hash, self.resumed = 0, hashlib.sha256(), False
        self.note = Note()

    def finish(self) -> None:
        """Give the file its name."""
        self._close()
        os.replace(self.path, self.place)
        self._note_path.unlink(missing_ok=True)

    def remove(self) -> None:
        with suppress(OSError):  # on a full disk closing fails as well
            self._close()
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)
        self.note = Note()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _read_note(self) -> Note:
        try:
            values = json.loads(self._note_path.read_text(encoding="utf-8"))
            return Note(**values)
        except (OSError, ValueError, TypeError):
            return Note()


def _validator(answer: Answer) -> str:
    etag = answer.headers.get("etag", "")
    return etag if etag.startswith('"') else answer.headers.get("last-modified", "")


def _linked_sha256(answer: Answer) -> str:
    """The checksum that Hugging Face sends for its large files."""
    found = re.fullmatch(r'"?([0-9a-f]{64})"?', answer.linked)
    return found[1] if found else ""
