"""Downloading a model: all its files, never half there under their names."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..base import RewardError
from ..heartbeat import heartbeat
from .fetch import fetch
from .places import is_there, places
from .source import RemoteFile, Source
from .stream import Patience
from .target import Target

log = logging.getLogger("dno")

Report = Callable[[int, int], None]

_BETWEEN_REPORTS = 0.1


def download(source: Source, root: Path, report: Report, patience: Patience | None = None) -> Path:
    """Put the model into `root` and return its file or folder; what is there is not fetched again.

    report(bytes done, bytes in all) is called up to ten times a second; bytes in all grow while
    the size of a file is not known. heartbeat() is called five times a second at least. What either
    raises ends the download; the next call takes it up where it ended. Raises RewardError.
    """
    files = places(source, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{source.name.replace('/', '.')}.lock"):
            progress = _Progress(files, report)
            for file, place in files:
                if not is_there(place):
                    log.info("downloading %s", file.url)
                    fetch(Target(source, file, place), progress.of(place), patience or Patience())
            progress.tell(last=True)
    except OSError as error:
        raise RewardError(
            f"{source.name}: {root} cannot be written to ({error.strerror or error}). "
            "Check its permissions, or give another folder in extra_model_paths.yaml."
        ) from error
    finally:
        with suppress(OSError):  # a folder that nothing came into
            (root / source.name).rmdir()
    return root / source.name


class _Progress:
    """The bytes of every file, told as one sum."""

    def __init__(self, files: list[tuple[RemoteFile, Path]], report: Report) -> None:
        there = {place: place.stat().st_size for _, place in files if is_there(place)}
        self._done = {place: there.get(place, 0) for _, place in files}
        self._size = {place: there.get(place, file.size) for file, place in files}
        self._report, self._told = report, 0.0

    def of(self, place: Path) -> Callable[[int, int], None]:
        def tell(done: int, size: int) -> None:
            self._done[place], self._size[place] = done, max(done, size)
            self.tell()

        return tell

    def tell(self, last: bool = False) -> None:
        now, total = time.monotonic(), sum(self._size.values())
        if total and (last or now - self._told >= _BETWEEN_REPORTS):
            self._told = now
            self._report(sum(self._done.values()), total)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait, with heartbeats, until no other download of the model is under way."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    while True:
        heartbeat()
        try:
            held.acquire(timeout=0.2, poll_interval=0.1)
            break
        except Timeout:
            log.debug("waiting for the other download that holds %s", lock)
        except NotImplementedError:
            log.warning("%s cannot be locked: start no second download into it", lock.parent)
            break
    try:
        yield
    finally:
        held.release()
