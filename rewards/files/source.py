"""Where a model's files come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model. name: where it lies in the model's folder; "" for a model of one file.

    size: bytes, exact beside a sha256, else as published or counted from the parameters; 0 if not
    known. sha256: hexadecimal; "" where only the server's own word is known.
    """

    url: str
    name: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """A model that can be downloaded. name: the file or folder it becomes in models/dno_rewards/.

    page: where a person reads about it and gets it by hand.
    """

    name: str
    files: tuple[RemoteFile, ...]
    licence: str
    page: str

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size for file in self.files)
