"""One tensor an iteration, in main memory up to a cap and beyond it in files."""

from __future__ import annotations

import uuid
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DEFAULT_BYTE_CAP = 512 * 2**20


class Frames:
    """A growing list of CPU tensors; what goes past the byte cap lies in files of `folder`."""

    def __init__(self, byte_cap: int = DEFAULT_BYTE_CAP, folder: Path | None = None) -> None:
        self._items: list[Tensor | _Spilled] = []
        self._free = byte_cap
        self._folder = folder

    def append(self, frame: Tensor) -> None:
        frame = frame.detach().cpu().clone()
        size = _bytes(frame)
        if self._folder is None or size <= self._free:
            self._free -= size
            self._items.append(frame)
        else:
            self._items.append(_Spilled(frame, self._folder))

    def continued(self, count: int, byte_cap: int, folder: Path | None) -> Frames:
        """A list of its own that begins with the first `count` frames, which both then share."""
        other = Frames(byte_cap, folder)
        other._items = self._items[:count]
        other._free -= sum(_bytes(item) for item in other._items if isinstance(item, Tensor))
        return other

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        """A copy of a frame. Raises FileNotFoundError where its file was deleted meanwhile."""
        item = self._items[index]
        if isinstance(item, Tensor):
            return item.clone()
        if not item.path.is_file():
            raise FileNotFoundError(
                f"The picture of iteration {index} is gone: {item.path.name} was deleted from the "
                "temp folder. Run the sampler again, or raise its memory_mb."
            )
        return item.read()


class _Spilled:
    """A frame in a file, which goes with the last list that holds it."""

    def __init__(self, frame: Tensor, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"dno_{uuid.uuid4().hex}.npy"
        self._dtype = frame.dtype
        weakref.finalize(self, self.path.unlink, missing_ok=True)
        as_bytes = frame.contiguous().view(torch.uint8)  # numpy knows no bfloat16
        np.save(self.path, as_bytes.numpy(), allow_pickle=False)

    def read(self) -> Tensor:
        return torch.from_numpy(np.load(self.path, allow_pickle=False)).view(self._dtype)


def _bytes(frame: Tensor) -> int:
    return frame.numel() * frame.element_size()
