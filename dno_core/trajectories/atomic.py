"""A safetensors file written piece by piece, under its name only once it is whole."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file, given in `pieces` that are its rows one after another."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def whole(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tensor.dtype, tuple(tensor.shape), [tensor])


def stacked(name: str, first: Tensor, count: int, pieces: Iterable[Tensor]) -> Entry:
    """`count` tensors of the dtype and shape of the first as one [count, ...]."""
    return Entry(name, first.dtype, (count, *first.shape), pieces)


def write_safetensors(path: Path, metadata: Mapping[str, str], entries: Sequence[Entry]) -> None:
    """Write the file, one piece in memory at a time. Raises OSError, and then `path` is as before.

    Raises ValueError for pieces of another dtype or too few of them.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # readers want alignment
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + _size(entry)
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomically(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            _write(file, entry)


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name, also over an older one, when all of it is on the disk.

    On any failure it is removed, and what bore the name stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _write(file: BinaryIO, entry: Entry) -> None:
    written = 0
    for piece in entry.pieces:
        if piece.dtype != entry.dtype:
            raise ValueError(f"'{entry.name}' holds {piece.dtype} beside {entry.dtype}.")
        data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        written += data.nbytes
        file.write(data.data)
    if written != _size(entry):
        raise ValueError(f"'{entry.name}' holds {written} bytes and needs {_size(entry)}.")


def _size(entry: Entry) -> int:
    numbers = 1
    for side in entry.shape:
        numbers *= side
    return numbers * entry.dtype.itemsize


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; only POSIX systems can, and not on every file system."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
