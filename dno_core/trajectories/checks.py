"""What a trajectory file must be to be one: checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..objective import TermInfo
from .plain import Unfit
from .redraw import RedrawNumbers
from .trajectory import Record


@dataclass(frozen=True)
class Run:
    """What of a trajectory is no tensor."""

    terms: tuple[TermInfo, ...]
    records: tuple[Record, ...]
    best: tuple[int, ...]
    best_noise_at: tuple[int, ...]
    stop_reason: str
    warnings: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)


def require_consistent(run: Run) -> None:
    """Raise Unfit where terms, records and images do not go together or a number is none."""
    terms, batch, count = len(run.terms), len(run.best), len(run.records)
    if not (terms and batch and count and len(run.best_noise_at) == batch):
        raise Unfit("it holds no run: its terms, records or images are empty")
    for term in run.terms:
        if not (term.scale > 0 and term.scale < float("inf")):
            raise Unfit(f"the scale of '{term.name}' is {term.scale}")
    if not all(0 <= place < count for place in (*run.best, *run.best_noise_at)):
        raise Unfit(f"its best iteration is none of its {count}")
    for place, record in enumerate(run.records):
        where = f"record {place}"
        if record.index != run.records[0].index + place or record.index < 0:
            raise Unfit(f"{where} says it is iteration {record.index}")
        if record.steps < 0:
            raise Unfit(f"{where} was sampled in {record.steps} steps")
        if len(record.scores) != terms or len(record.settings.weights) != terms:
            raise Unfit(f"{where} has not one score and one weight for each of {terms} rewards")
        for item in fields(Record):
            value = getattr(record, item.name)
            if value != () or item.default is MISSING:  # () stands for what was not measured
                _require_rows(value, batch, f"{item.name} of {where}")
        if any(value != value for value in _numbers(record)):
            raise Unfit(f"{where} holds NaN")
        if not all(abs(value) < float("inf") for row in record.scores for value in row):
            raise Unfit(f"a score of {where} is infinite")


def require_consistent_redraw(redraw: RedrawNumbers, run: Run) -> None:
    """Raise Unfit where what was drawn again is not of this run."""
    terms, batch, count = len(run.terms), len(run.best), len(run.records)
    if len(redraw.winners) != batch or len(redraw.taken) != batch:
        raise Unfit(f"its redraw is not one of {batch} images")
    if not all(0 <= place < count for place in redraw.winners):
        raise Unfit(f"its redraw is of an iteration that is none of its {count}")
    if redraw.best != run.best:
        raise Unfit("its redraw is of another iteration than its best")
    for name in ("before", "after"):
        rows = getattr(redraw, name)
        if len(rows) != terms:
            raise Unfit(f"its redraw has {len(rows)} scores for {terms} rewards")
        _require_rows(rows, batch, f"{name} of its redraw")
        if not all(abs(value) < float("inf") for row in rows for value in row):
            raise Unfit(f"a score '{name}' of its redraw is infinite or NaN")
    if not redraw.seconds >= 0:
        raise Unfit(f"its redraw took {redraw.seconds} seconds")


def _require_rows(value: Any, batch: int, where: str) -> None:
    """A tuple has one number for every image; a tuple of tuples has such rows."""
    if not isinstance(value, tuple):
        return
    if value and isinstance(value[0], tuple):
        for row in value:
            _require_rows(row, batch, where)
    elif len(value) != batch:
        raise Unfit(f"{where} has {len(value)} numbers for {batch} images")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _numbers(getattr(value, item.name))


def read_noise(file: Any, name: str, batch: int) -> Tensor:
    """A noise [N,B,...] of an open safetensors file: finite floats."""
    noise = file.get_tensor(name).clone()
    if noise.ndim < 3 or noise.shape[1] != batch or noise.numel() == 0:
        raise Unfit(f"'{name}' has shape {list(noise.shape)} for {batch} images")
    return _finite(noise, name)


def read_state(file: Any, name: str, noise: Tensor) -> Tensor:
    """A tensor of the optimizer's: one number, or shaped as the noise."""
    state = file.get_tensor(name).clone()
    if state.ndim and state.shape != noise.shape:
        raise Unfit(f"'{name}' has shape {list(state.shape)} for noise {list(noise.shape)}")
    return _finite(state, name)


def read_frames(
    file: Any, name: str, count: int, batch: int, *, floating: bool
) -> Iterator[Tensor]:
    """The frames one by one. Images: uint8 [B,H,W,3]; latents: finite floats [B,C,...]."""
    frames = file.get_slice(name)
    shape = frames.get_shape()
    right = len(shape) >= 3 and tuple(shape[:2]) == (count, batch) and 0 not in shape
    if not right or (not floating and (len(shape) != 5 or shape[-1] != 3)):
        raise Unfit(f"'{name}' has shape {shape} for {count} iterations of {batch} images")
    for index in range(count):
        frame = frames[index : index + 1][0]
        if floating:
            _finite(frame, name)
        elif frame.dtype != torch.uint8:
            raise Unfit(f"'{name}' holds {frame.dtype}")
        yield frame


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.is_floating_point():
        raise Unfit(f"'{name}' holds {values.dtype}")
    if not bool(torch.isfinite(values).all()):
        raise Unfit(f"'{name}' holds NaN or infinity")
    return values
