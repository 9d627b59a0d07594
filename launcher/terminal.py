"""What the user sees: a progress line, and problems in two sentences."""

from __future__ import annotations

import sys
import time
from types import TracebackType

WIDTH = 28


class Problem(Exception):
    """Something the user can repair. The text says what happened and what to do."""


class Bar:
    """A progress line: redrawn in place on a terminal, one line per quarter in a log."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.live = sys.stdout.isatty()
        self.last = ""
        self.quarter = -1
        self.share = 0.0

    def update(self, share: float, note: str = "") -> None:
        """Show `share` in [0, 1]; the line never runs backwards."""
        self.share = max(self.share, min(share, 1.0))
        if self.live:
            filled = round(self.share * WIDTH)
            bar = "#" * filled + "." * (WIDTH - filled)
            self._draw(f"{self.title} [{bar}] {self.share:4.0%} {note}"[:110])
        elif int(self.share * 4) > self.quarter:
            self.quarter = int(self.share * 4)
            print(f"{self.title} {self.share:4.0%} {note}".rstrip(), flush=True)

    def _draw(self, line: str) -> None:
        if line != self.last:
            print("\r" + line.ljust(len(self.last)), end="", flush=True)
            self.last = line

    def __enter__(self) -> Bar:
        self.update(0.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.quarter = 3
            self.update(1.0, f"{time.monotonic() - self.started:.0f} s")
        if self.live:
            print(flush=True)


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a log, indented, for the foot of an error."""
    return "\n".join("    " + line.rstrip() for line in text.splitlines()[-lines:])
