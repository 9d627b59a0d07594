"""How long waits inside a reward stay interruptible.

Downloads and calls to other programs call `heartbeat()` several times a second. Whoever runs the
reward says with `beating` what that does: in ComfyUI it raises when the prompt was cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_beat: ContextVar[Callable[[], None] | None] = ContextVar("dno_heartbeat", default=None)


def heartbeat() -> None:
    """To be called about every 0.2 s while waiting; what it raises ends the wait."""
    beat = _beat.get()
    if beat is not None:
        beat()


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Within it, `heartbeat()` calls `beat`."""
    token = _beat.set(beat)
    try:
        yield
    finally:
        _beat.reset(token)
