"""Fetching one file: asked for, resumed, judged, checked, and only then given its name."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable

from .checkpoint import not_weights
from .part import Part
from .stream import Answer, Passing, Patience, Refused, Stream, pause
from .target import Target

log = logging.getLogger("dno")

Tell = Callable[[int, int], None]
"""Called with the bytes of the file that are there, and its size, 0 where that is not known."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 60.0
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "comfyui-dno"}

_MEANING = {
    401: "which means a login, or a licence to accept",
    403: "which means a login, or a licence to accept",
    404: "so the file is no longer there",
    410: "so the file is no longer there",
}


def fetch(target: Target, tell: Tell, patience: Patience) -> None:
    """Put the file in its place, with as many tries as bring something new. Raises RewardError."""
    most, tries = 0, 0
    with Part(target.place, target.url, pinned=bool(target.file.sha256)) as part:
        tell(part.size, target.file.size)
        while True:
            try:
                _attempt(target, part, tell, patience)
                return
            except Passing as error:
                tries = 1 if part.size > most else tries + 1
                most = max(most, part.size)
                if tries > patience.retries:
                    size = part.note.total or target.file.size
                    raise target.given_up(str(error), tries, part.size, size) from None
                log.warning("%s: %s; trying again", target.place.name, error)
                pause(max(error.wait, min(patience.pause * 2 ** (tries - 1), _LONGEST_PAUSE)))
            except Refused as error:
                raise target.by_hand(f"{target.url}: {error}") from None
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                size = part.note.total or target.file.size
                part.remove()
                raise target.disk_full(size) from None


def _attempt(target: Target, part: Part, tell: Tell, patience: Patience) -> None:
    whole = part.size > 0 and part.size == part.note.total
    if not whole:
        with Stream(target.url, _HEADERS | part.range_headers(), patience) as stream:
            _take_up(target, part, stream.answer())
            total = part.note.total
            for chunk in stream.chunks():
                if not part.size and (found := not_weights(chunk)):
                    part.remove()
                    raise target.by_hand(f"{target.url} sent {found}")
                part.write(chunk)
                tell(part.size, total or target.file.size)
            if part.size < total:
                raise Passing("the connection was cut")
    _check(target, part)
    part.finish()


def _take_up(target: Target, part: Part, answer: Answer) -> None:
    """Make ready for the body: its place in the file, its length, room on the disk."""
    if answer.status == 416:
        part.restart()
        raise Passing("the server has another file than before")
    if answer.status not in (200, 206):
        _turned_away(target, answer)
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise target.by_hand(f"{target.url} sent a web page instead of the file")
    start, total = _span(answer)
    if start != part.size:
        part.restart()
        if start:
            raise Passing("the server sent another part than was asked for")
    if target.file.sha256 and target.file.size and total not in (0, target.file.size):
        part.remove()
        raise target.by_hand(
            f"{target.url} has {total} bytes and not {target.file.size}: the file was changed"
        )
    if total - part.size > shutil.disk_usage(target.place.parent).free:
        part.remove()
        raise target.disk_full(total)
    part.begin(target.url, answer, total)


def _turned_away(target: Target, answer: Answer) -> None:
    if answer.status in _TRY_AGAIN:
        after = answer.headers.get("retry-after", "")
        wait = float(after) if after.isdecimal() else 0.0
        raise Passing(f"the server answered {answer.status}", min(wait, _LONGEST_RETRY_AFTER))
    meaning = _MEANING.get(answer.status, "which was not expected")
    raise target.by_hand(f"{target.url} answered {answer.status}, {meaning}")


def _span(answer: Answer) -> tuple[int, int]:
    """Where the body begins in the file, and the file's length, 0 where it is not told."""
    length = answer.headers.get("content-length", "")
    if answer.status == 200:
        packed = answer.headers.get("content-encoding", "identity") != "identity"
        return 0, int(length) if length.isdecimal() and not packed else 0
    span, _, total = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    if not (start.isdecimal() and total.isdecimal()):
        raise Passing("the server sent a part without saying which")
    return int(start), int(total)


def _check(target: Target, part: Part) -> None:
    """Compare with the pinned checksum, or else the server's; forget what is wrong."""
    expected = target.file.sha256 or part.note.sha256
    too_long = 0 < part.note.total < part.size
    if not too_long and expected in ("", part.sha256):
        return
    if part.resumed:
        part.restart()
        raise Passing("what came does not fit what was kept")
    part.remove()
    raise target.by_hand(f"what {target.url} sent has the wrong checksum and was removed")
