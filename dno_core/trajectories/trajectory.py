"""What a run leaves behind: every iteration's numbers and pictures, without graph or weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..loop import Iteration, Settings
from ..objective import TermInfo, objective
from ..probability.typicality import TYPICAL
from .continuation import Outcome, require_same_outcome, require_same_terms
from .frames import DEFAULT_BYTE_CAP, Frames
from .redraw import Redraw


@dataclass(frozen=True)
class Record:
    """The numbers of one iteration, as plain floats an image.

    `scores`: a row a term. `step_quantile`: a row a noise, P(z)'s quantile of each by itself;
    `step_low` that of the worst one among as many. Both are empty where they were not measured.
    `steps`: of the sampling that drew it; 0 where it was not noted.
    """

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
    step_quantile: tuple[tuple[float, ...], ...] = ()
    step_low: tuple[float, ...] = ()
    steps: int = 0


@dataclass(frozen=True)
class Trajectory:
    """A finished run, on the CPU.

    `latents` [B,C,h,w] and `images` (uint8 [B,H,W,3]) hold one frame an iteration. `best` is the
    iteration chosen for every image. `best_noise` [N,B,...] is there for the images whose
    `best_noise_at` equals `best`; `last_noise` and `optimizer_state` are what a run goes on from.
    The optimizer's state at `best` is not kept: the images of a batch are best at different
    iterations, and no optimizer has ever been in the state that theirs make together. A climb
    from the best noise begins with fresh moments. `redraw`: the result at full quality, where the
    iterations had less; its `best` is then this one's.
    """

    terms: tuple[TermInfo, ...]
    records: tuple[Record, ...]
    latents: Frames = field(repr=False)
    images: Frames = field(repr=False)
    best: tuple[int, ...]
    best_noise: Tensor = field(repr=False)
    best_noise_at: tuple[int, ...]
    last_noise: Tensor = field(repr=False)
    optimizer_state: dict[str, Tensor] = field(repr=False)
    stop_reason: str
    warnings: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    redraw: Redraw | None = field(default=None, repr=False)

    @property
    def batch(self) -> int:
        return len(self.best)

    @property
    def last(self) -> int:
        """Index of the last iteration."""
        return self.records[-1].index

    def objectives(self, weights: Sequence[float] | None = None) -> Tensor:
        """Objective of every iteration [I,B] under `weights` (None: those of the last)."""
        return objectives(self.terms, self.records, weights)

    def take(self, frames: Frames, indices: Sequence[int]) -> Tensor:
        """For every image of the batch its frame of the iteration given for it."""
        return torch.stack([frames[i][b] for b, i in enumerate(indices)])

    @property
    def result_latents(self) -> Tensor:
        """[B,C,h,w]: what the run returns, at full quality where it was drawn again."""
        if self.redraw is not None:
            return self.redraw.result(self.redraw.latents)
        return self.take(self.latents, self.best)

    @property
    def result_images(self) -> Tensor:
        """uint8 [B,H,W,3]: the pictures of `result_latents`."""
        if self.redraw is not None:
            return self.redraw.result(self.redraw.images)
        return self.take(self.images, self.best)

    def with_redraw(self, redraw: Redraw | None) -> Trajectory:
        """This run, its result drawn again; None forgets an earlier redraw and keeps `best`."""
        best = self.best if redraw is None else redraw.best
        return replace(self, best=best, redraw=redraw)


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
    Where a run has gone on in more sampling steps, only iterations drawn in the most of them do,
    so that scores are compared like with like.
    """
    values = objectives(terms, records, weights)
    steps = torch.tensor([record.steps for record in records])
    counts = torch.tensor([record.quantile for record in records]) > TYPICAL
    counts[0] = True
    counts &= (steps == steps.max())[:, None]
    return tuple(values.masked_fill(~counts, -torch.inf).argmax(0).tolist())


class Recorder:
    """Builds a Trajectory while the run goes on.

    With `continues` it begins with all that this earlier run left behind, which is not changed.
    The run must then begin with `optimize(..., z=continues.last_noise, start=continues.last,
    optimizer_state=continues.optimizer_state)`. Raises NotTheSameRun for other rewards.
    """

    def __init__(
        self,
        terms: tuple[TermInfo, ...],
        byte_cap: int = DEFAULT_BYTE_CAP,
        folder: Path | None = None,
        continues: Trajectory | None = None,
    ) -> None:
        self.terms = terms
        self.records: list[Record] = []
        self.latents = Frames(byte_cap // 4, folder)
        self.images = Frames(byte_cap - byte_cap // 4, folder)
        self._best_noise: list[Tensor] = []
        self._best_at: list[int] = []
        self._end: tuple[Tensor, Mapping[str, Tensor]] | None = None
        self._rejoins = continues is not None
        if continues is not None:
            require_same_terms(continues.terms, terms)
            self.records += continues.records
            count = len(self.records)
            self.latents = continues.latents.continued(count, byte_cap // 4, folder)
            self.images = continues.images.continued(count, byte_cap - byte_cap // 4, folder)
            self._best_noise += continues.best_noise.unbind(1)
            self._best_at += continues.best_noise_at
            self._end = continues.last_noise, continues.optimizer_state

    @property
    def best(self) -> tuple[int, ...]:
        return best_iterations(self.terms, self.records)

    def add(self, iteration: Iteration, latent: Tensor) -> Record:
        """Keep an iteration; `latent` is its x_T in the form that the user's tools take.

        The first one of a continued run is the last of the earlier: it is not kept again but
        held against its record. Raises NotTheSameRun where it comes out differently.
        """
        if self._rejoins:
            return self._rejoin(iteration, latent)
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
            step_quantile=_rows(reading.step_quantile),
            step_low=() if reading.step_low is None else _floats(reading.step_low),
            steps=iteration.steps,
        )
        latent, pixels = latent.detach().cpu(), to_uint8(iteration.image)
        self.latents.append(latent)
        self.images.append(pixels)
        self.records.append(record)  # last: a record without its frames would be unusable
        self._end = iteration.z, iteration.optimizer_state
        position = len(self.records) - 1
        if position == 0:
            self._best_noise = [image.cpu() for image in iteration.z.unbind(1)]
            self._best_at = [0] * iteration.z.shape[1]
        for image, best in enumerate(self.best):
            if best == position:
                self._best_noise[image] = iteration.z[:, image].cpu()
                self._best_at[image] = position
        return record

    def _rejoin(self, iteration: Iteration, latent: Tensor) -> Record:
        last = len(self.records) - 1
        record = self.records[last]
        if iteration.index != record.index:
            raise ValueError(
                f"The run to resume ended with iteration {record.index} and this one begins with "
                f"iteration {iteration.index}. Start at {record.index}, with its last noise."
            )
        require_same_outcome(
            self.terms,
            record.index,
            Outcome(self.latents[last], self.images[last], torch.tensor(record.scores)),
            Outcome(latent, to_uint8(iteration.image), iteration.scores),
        )
        if record.steps == 0:  # of a file from before they were noted: all took as many as now
            self.records = [replace(each, steps=iteration.steps) for each in self.records]
        self.records[-1] = replace(  # these settings shape the next step
            record, settings=iteration.settings, steps=iteration.steps
        )
        self._rejoins = False
        self._end = iteration.z, iteration.optimizer_state
        return self.records[-1]

    def finish(
        self, stop_reason: str, warnings: Sequence[str] = (), meta: dict[str, Any] | None = None
    ) -> Trajectory:
        """The trajectory so far. Raises RuntimeError if no iteration was added."""
        if self._end is None:
            raise RuntimeError("No iteration was recorded. Add at least one before finishing.")
        last_noise, state = self._end
        return Trajectory(
            terms=self.terms,
            records=tuple(self.records),
            latents=self.latents,
            images=self.images,
            best=self.best,
            best_noise=torch.stack(self._best_noise, 1),
            best_noise_at=tuple(self._best_at),
            last_noise=_to_cpu(last_noise),
            optimizer_state={name: _to_cpu(value) for name, value in state.items()},
            stop_reason=stop_reason,
            warnings=tuple(warnings),
            meta=dict(meta or {}),
        )


def to_uint8(image: Tensor) -> Tensor:
    """Image [B,3,H,W] in [0,1] as it is saved: uint8 [B,H,W,3] (truncated, as ComfyUI does)."""
    return (image.detach() * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()


def _rows(values: Tensor | None) -> tuple[tuple[float, ...], ...]:
    if values is None:
        return ()
    return tuple(tuple(row) for row in values.detach().cpu().double().tolist())


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.detach().cpu().double().tolist())


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
