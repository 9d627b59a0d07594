"""One running sampler, as the browser sees it and reaches into it."""

from __future__ import annotations

import math
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from ...dno_core import Record, Settings, TermInfo
from ...dno_core.trajectories.trajectory import objectives
from .changes import LIMITS, Change, ChangeError, Keep, checked

State = Literal["running", "paused", "done", "cancelled", "failed"]
Send = Callable[[str, dict[str, Any]], None]
"""Hands an event (name, data) to the client that queued the prompt; must not wait for it."""

TYPICAL = 0.01
"""Where P(z)'s percentile stops being typical: the edge of the band that the panel draws."""

POLL = 0.05
"""Seconds between two looks of a paused run at what was asked."""


class Stopped(Exception):
    """The artist stopped the run; what was reached is kept."""


class Closed(RuntimeError):
    """The run has ended, so there is nothing left to control."""


class Session:
    """Numbers of every iteration, the changes made, and what was asked of the run last.

    The sampler's thread calls `step`, `wait`, `raise_if_stopped` and `close`; `control`, `state`
    and `frame` are called from the server's. It holds no device tensors, and pictures only as
    long as the run's own trajectory does.
    """

    def __init__(
        self,
        node: str | None,
        prompt_id: str | None,
        client: str | None,
        terms: Sequence[TermInfo],
        planned: int,
        settings: Settings,
        send: Send,
        changes: Sequence[Change] = (),
        workflow: str | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.node = node
        self.prompt_id = prompt_id
        self.client = client
        self.workflow = workflow
        self._terms = tuple(terms)
        self._planned = planned
        self._base = settings
        self._send = send
        self._lock = threading.Lock()
        self._changes = list(changes)
        self._state: State = "running"
        self._reason = ""
        self._paused = False
        self._stopping = False
        self._settled = False
        self._told = False
        self._begun = 0
        self._steps: list[dict[str, Any]] = []
        self._frames: Callable[[], Any] = lambda: None
        self._first = 0

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes so far: those the run was given, and those made by hand."""
        with self._lock:
            return tuple(self._changes)

    def changes_for(self, index: int) -> tuple[Change, ...]:
        """All changes so far, as iteration `index` begins; one made from now on comes after it."""
        with self._lock:
            self._begun = index
            return tuple(self._changes)

    def settle(self) -> tuple[Change, ...]:
        """The run takes in no more iterations, and accepts nothing more. All its changes, a stop
        where it took effect: an iteration may have come in after it was asked for."""
        with self._lock:
            self._settled = True
            for place, each in enumerate(self._changes):
                if each.stop and each.after < self.index:
                    self._changes[place] = replace(each, after=self.index)
            self._changes.sort(key=_after)
            return tuple(self._changes)

    @property
    def is_open(self) -> bool:
        return self._state in ("running", "paused")

    @property
    def is_paused(self) -> bool:
        """Whether the run is asked to wait."""
        return self._paused

    @property
    def index(self) -> int:
        """The last iteration that is there; -1 before the first."""
        return self._steps[-1]["index"] if self._steps else -1

    def begin(self, images: Any, earlier: Sequence[Record] = ()) -> None:
        """Tell that the run begins. `images` are its trajectory's, one entry an iteration;
        `earlier` the records of the run it goes on with."""
        self._frames = weakref.ref(images)
        self._first = earlier[0].index if earlier else 0
        self._steps += [self._as_step(record) for record in earlier[:-1]]
        self._tell("dno.state", self._head())

    def step(
        self,
        record: Record,
        best: Sequence[int],
        seconds_left: float | None = None,
        memory: tuple[int, int] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Tell of an iteration; `best` are the indices of every image's best so far."""
        told = {
            "seconds_left": seconds_left,
            "best": list(best),
            "memory": memory and {"used": memory[0], "total": memory[1]},
            "warnings": list(warnings),
        }
        step = {**self._as_step(record), **_finite(told)}
        with self._lock:
            self._steps.append(step)
            self._told = True
        self._tell("dno.step", step)

    def wait(self, check: Callable[[], None]) -> float:
        """Wait while paused; `check` may raise to cancel. Returns the seconds waited."""
        if not self._paused:
            return 0.0
        begun = time.perf_counter()
        self._turn("paused")
        while self._paused and not self._stopping:
            check()
            time.sleep(POLL)
        self._turn("running")
        return time.perf_counter() - begun

    def stop(self) -> Keep | None:
        """What the run is to end with, if it is to end now: by hand, or as it was recorded."""
        due = (each.stop for each in self.changes if each.stop and each.after <= self.index)
        return next(due, None)

    @property
    def stop_reason(self) -> str:
        """Why the run is to end now; "" if it is not."""
        keep = self.stop()
        return f"stopped by hand, keeping the {keep} iteration" if keep else ""

    def raise_if_stopped(self) -> None:
        """Between two denoising steps: raise Stopped once there is something to keep."""
        if self._stopping and self._told:
            raise Stopped

    def close(self, state: State, reason: str = "") -> None:
        """The run has ended; what was recorded stays readable."""
        with self._lock:
            self._state, self._reason = state, reason
        self._tell("dno.state", self._head())

    def control(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do what was asked: pause, stop, or change values from the next iteration on.

        Returns what was accepted. Raises ChangeError for what is not right, Closed after the end.
        """
        values = dict(asked)
        pause = values.pop("pause", None)
        if pause is not None and not isinstance(pause, bool):
            raise ChangeError("pause must be true or false.")
        if pause is None and not values:
            raise ChangeError("Nothing was asked. Give pause, stop, learning_rate, gamma, weights.")
        with self._lock:
            if self._settled or not self.is_open:
                raise Closed("This run has ended. Queue it again to change it.")
            begun = self.index if values.get("stop") else self._begun
            change = checked(values, max(self.index, begun, 0), self._terms)
            if pause is not None:
                self._paused = pause
            if values:
                self._changes.append(change)
                self._changes.sort(key=_after)  # as they are read again
            self._stopping = self._stopping or change.stop is not None
        if values:
            self._tell("dno.changed", change.as_dict())
        said = {} if pause is None else {"pause": pause}
        return {"session": self.id, **change.as_dict(), **said}

    def state(self) -> dict[str, Any]:
        """Everything a page needs that has just been opened."""
        with self._lock:
            steps, changes = list(self._steps), [change.as_dict() for change in self._changes]
        best = steps[-1]["best"] if steps else []
        return {**self._head(), "steps": steps, "changes": changes, "best": best}

    def entry(self) -> dict[str, Any]:
        """The session as one line of the list."""
        return {**self._name(), "state": self._state, "planned": self._planned, "index": self.index}

    def frame(self, index: int) -> Tensor | None:
        """The images of an iteration, uint8 [B,H,W,3]; None where there are none (any more)."""
        frames, position = self._frames(), index - self._first
        if frames is None or not 0 <= position < len(frames):
            return None
        try:
            return frames[position]
        except FileNotFoundError:
            return None

    def _as_step(self, record: Record) -> dict[str, Any]:
        settings = record.settings
        step = {
            "index": record.index,
            "planned": self._planned,
            "scores": [list(row) for row in record.scores],
            "objective": objectives(self._terms, [record])[0].tolist(),
            "quantile": list(record.quantile),
            "step_low": list(record.step_low),
            "saturated": list(record.saturated),
            "settings": {
                "learning_rate": settings.learning_rate,
                "gamma": settings.gamma,
                "weights": list(settings.weights),
            },
            "seconds": record.seconds,
            "seconds_left": None,
            "best": [],
            "memory": None,
            "warnings": [],
        }
        return dict(_finite(step))

    def _turn(self, state: State) -> None:
        with self._lock:
            self._state = state
        self._tell("dno.state", self._head())

    def _name(self) -> dict[str, Any]:
        return {"session": self.id, "node": self.node, "prompt_id": self.prompt_id}

    def _head(self) -> dict[str, Any]:
        return {
            **self._name(),
            "workflow": self.workflow,
            "state": self._state,
            "reason": self._reason,
            "planned": self._planned,
            "terms": [_finite(vars(term)) for term in self._terms],
            "typical": TYPICAL,
            "batch": len(self._steps[-1]["quantile"]) if self._steps else 1,
            "learning_rate": self._base.learning_rate,
            "gamma": self._base.gamma,
            "limits": {name: list(limits) for name, limits in LIMITS.items()},
        }

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        self._send(event, {**self._name(), **data})


def _after(change: Change) -> int:
    return change.after


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
