"""What a run leaves behind: every iteration's numbers and pictures, without graph or weights."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .loop import Iteration, Settings
from .objective import TermInfo, objective
from .typicality import TYPICAL

DEFAULT_BYTE_CAP = 512 * 2**20


@dataclass(frozen=True)
class Record:
    """The numbers of one iteration, as plain floats an image (scores: a row a term)."""

    index: int
    scores: tuple[tuple[float, ...], ...]
    log_p: tuple[float, ...]
    quantile: tuple[float, ...]
    saturated: tuple[float, ...]
    gradient_norm: tuple[float, ...] | None
    penalty: tuple[float, ...] | None
    noise_rms: tuple[float, ...]
    settings: Settings
    seconds: float


class Frames:
    """A growing list of CPU tensors; what goes past the byte cap lies in files of `folder`."""

    def __init__(self, byte_cap: int = DEFAULT_BYTE_CAP, folder: Path | None = None) -> None:
        self._items: list[Tensor | tuple[Path, torch.dtype]] = []
        self._free = byte_cap
        self._folder = folder

    def append(self, frame: Tensor) -> None:
        frame = frame.detach().cpu().clone()
        size = frame.numel() * frame.element_size()
        if self._folder is None or size <= self._free:
            self._free -= size
            self._items.append(frame)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"dno_{uuid.uuid4().hex}.npy"
        weakref.finalize(self, path.unlink, missing_ok=True)
        as_bytes = frame.contiguous().view(torch.uint8)  # numpy knows no bfloat16
        np.save(path, as_bytes.numpy(), allow_pickle=False)
        self._items.append((path, frame.dtype))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        """A copy of a frame. Raises FileNotFoundError where its file was deleted meanwhile."""
        item = self._items[index]
        if isinstance(item, Tensor):
            return item.clone()
        path, dtype = item
        if not path.is_file():
            raise FileNotFoundError(
                f"The picture of iteration {index} is gone: {path.name} was deleted from the "
                "temp folder. Run the sampler again, or raise its memory limit."
            )
        return torch.from_numpy(np.load(path, allow_pickle=False)).view(dtype)


@dataclass(frozen=True)
class Trajectory:
    """A finished run, on the CPU.

    `latents` [B,C,h,w] and `images` (uint8 [B,H,W,3]) hold one frame an iteration. `best` is the
    iteration chosen for every image. `best_noise` [N,B,...] is there for the images whose
    `best_noise_at` equals `best`; `last_noise` and `optimizer_state` are what a run goes on from.
    """

    terms: tuple[TermInfo, ...]
    records: tuple[Record, ...]
    latents: Frames = field(repr=False)
    images: Frames = field(repr=False)
    best: tuple[int, ...]
    best_noise: Tensor = field(repr=False)
    best_noise_at: tuple[int, ...]
    last_noise: Tensor = field(repr=False)
    optimizer_state: dict[str, Any] = field(repr=False)
    stop_reason: str
    warnings: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return len(self.best)

    def objectives(self, weights: Sequence[float] | None = None) -> Tensor:
        """Objective of every iteration [I,B] under `weights` (None: those of the last)."""
        return objectives(self.terms, self.records, weights)

    def take(self, frames: Frames, indices: Sequence[int]) -> Tensor:
        """For every image of the batch its frame of the iteration given for it."""
        return torch.stack([frames[i][b] for b, i in enumerate(indices)])


def objectives(
    terms: Sequence[TermInfo], records: Sequence[Record], weights: Sequence[float] | None = None
) -> Tensor:
    """Every iteration's objective [I,B], rescored from its stored scores."""
    weights = records[-1].settings.weights if weights is None else weights
    scores = torch.tensor([record.scores for record in records])
    return objective(terms, scores.movedim(1, 0), weights)


def best_iterations(
    terms: Sequence[TermInfo], records: Sequence[Record], weights: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Per image: the highest objective among iterations of typical noise; 0 where none is.

    Gives positions in `records`. Iteration 0 is the picture the user had, so it always counts.
    """
    values = objectives(terms, records, weights)
    typical = torch.tensor([record.quantile for record in records]) > TYPICAL
    typical[0] = True
    return tuple(values.masked_fill(~typical, -torch.inf).argmax(0).tolist())


class Recorder:
    """Builds a Trajectory while the run goes on."""

    def __init__(
        self,
        terms: tuple[TermInfo, ...],
        byte_cap: int = DEFAULT_BYTE_CAP,
        folder: Path | None = None,
    ) -> None:
        self.terms = terms
        self.records: list[Record] = []
        self.latents = Frames(byte_cap // 4, folder)
        self.images = Frames(byte_cap - byte_cap // 4, folder)
        self._best_noise: list[Tensor] = []
        self._best_at: list[int] = []
        self._last: Iteration | None = None

    @property
    def best(self) -> tuple[int, ...]:
        return best_iterations(self.terms, self.records)

    def add(self, iteration: Iteration, latent: Tensor) -> Record:
        """Keep an iteration; `latent` is its x_T in the form that the user's tools take."""
        reading = iteration.typicality
        update = iteration.update
        record = Record(
            index=iteration.index,
            scores=tuple(_floats(row) for row in iteration.scores),
            log_p=_floats(reading.log_p),
            quantile=_floats(reading.quantile),
            saturated=_floats(iteration.saturated),
            gradient_norm=None if update is None else _floats(update.gradient_norm),
            penalty=None if update is None else _floats(update.penalty),
            noise_rms=_floats(iteration.z.movedim(1, 0).flatten(1).square().mean(1).sqrt()),
            settings=iteration.settings,
            seconds=iteration.seconds,
        )
        latent, pixels = latent.detach().cpu(), to_uint8(iteration.image)
        self.latents.append(latent)
        self.images.append(pixels)
        self.records.append(record)  # last: a record without its frames would be unusable
        self._last = iteration
        position = len(self.records) - 1
        if position == 0:
            self._best_noise = [image.cpu() for image in iteration.z.unbind(1)]
            self._best_at = [0] * iteration.z.shape[1]
        for image, best in enumerate(self.best):
            if best == position:
                self._best_noise[image] = iteration.z[:, image].cpu()
                self._best_at[image] = position
        return record

    def finish(
        self, stop_reason: str, warnings: Sequence[str] = (), meta: dict[str, Any] | None = None
    ) -> Trajectory:
        """The trajectory so far. Raises RuntimeError if no iteration was added."""
        if self._last is None:
            raise RuntimeError("No iteration was recorded. Add at least one before finishing.")
        return Trajectory(
            terms=self.terms,
            records=tuple(self.records),
            latents=self.latents,
            images=self.images,
            best=self.best,
            best_noise=torch.stack(self._best_noise, 1),
            best_noise_at=tuple(self._best_at),
            last_noise=self._last.z.detach().cpu().clone(),
            optimizer_state=_to_cpu(self._last.optimizer_state),
            stop_reason=stop_reason,
            warnings=tuple(warnings),
            meta=dict(meta or {}),
        )


def to_uint8(image: Tensor) -> Tensor:
    """Image [B,3,H,W] in [0,1] as it is saved: uint8 [B,H,W,3] (truncated, as ComfyUI does)."""
    return (image.detach() * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.detach().cpu().double().tolist())


def _to_cpu(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _to_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_to_cpu(value) for value in state]
    return state
