"""A file server on 127.0.0.1 that cuts, stalls, lies and refuses as a test tells it to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Served:
    """A file and how it is served.

    etag, modified: "" sends none. ranges: whether Range is heeded. cuts: for one request after the
    other, the bytes of the body after which the connection is cut. stalls: the same, but the
    connection stays open and silent. statuses: answered, one request after the other, in place of
    the file. length: the Content-Length sent, where it is not the true one; -1 sends none.
    pause: seconds between blocks of 64 kB. location: redirects there.
    """

    body: bytes
    etag: str = '"first"'
    modified: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    length: int | None = None
    pause: float = 0.0
    location: str = ""


class FileServer:
    """Serves `files` by path while it is open as a context manager.

    requests: the path and the headers (names in lower case) of what was asked.
    """

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                names = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append((self.path, names))
                _serve(self, server.files.get(self.path), names, server.closing)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def serve(self, path: str, body: bytes, **how: object) -> str:
        """Put a file up; return its URL."""
        self.files[path] = Served(body, **how)  # type: ignore[arg-type]
        return self.url(path)

    def ranges(self) -> list[str]:
        """The Range header of every request, "" where there was none."""
        return [headers.get("range", "") for _, headers in self.requests]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


def _serve(
    handler: BaseHTTPRequestHandler,
    served: Served | None,
    headers: dict[str, str],
    closing: threading.Event,
) -> None:
    handler.close_connection = True
    if served is None or served.statuses:
        handler.send_error(served.statuses.pop(0) if served else 404)
        return
    if served.location:
        handler.send_response(302)
        for name, value in (("Location", served.location), *served.headers.items()):
            handler.send_header(name, value)
        handler.end_headers()
        return
    start = _start(served, headers)
    if start > len(served.body) or (start and start == len(served.body)):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(served.body)}")
        handler.end_headers()
        return
    _send(handler, served, start, closing)


def _start(served: Served, headers: dict[str, str]) -> int:
    if not served.ranges or "range" not in headers:
        return 0
    if headers.get("if-range", served.etag) not in (served.etag, served.modified):
        return 0
    return int(headers["range"].removeprefix("bytes=").rstrip("-"))


def _send(
    handler: BaseHTTPRequestHandler, served: Served, start: int, closing: threading.Event
) -> None:
    total = len(served.body) if served.length is None else served.length
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Type", served.content_type)
    if total >= 0:
        handler.send_header("Content-Length", str(total - start))
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    for name, value in (("ETag", served.etag), ("Last-Modified", served.modified)):
        if value:
            handler.send_header(name, value)
    for name, value in served.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    body = served.body[start:]
    stall = served.stalls.pop(0) if served.stalls else None
    end = served.cuts.pop(0) if served.cuts else (len(body) if stall is None else stall)
    try:
        for offset in range(0, end, 1 << 16):
            handler.wfile.write(body[offset : min(offset + (1 << 16), end)])
            if served.pause:
                time.sleep(served.pause)
        handler.wfile.flush()
        if stall is not None:
            closing.wait(60)
    except OSError:  # the other side went away
        pass
