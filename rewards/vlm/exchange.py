"""One HTTP request that can be left at any moment."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from ..heartbeat import heartbeat
from .address import Address

MOST_BYTES = 2**20
"""Of an answer: one with 20 alternatives to each of a hundred tokens takes a fifth of it."""

POLL = 0.1


class Reply(NamedTuple):
    status: int
    location: str
    body: bytes


class TooLarge(Exception):
    """The answer is longer than MOST_BYTES."""


class _Call(threading.Thread):
    """The request, where the caller need not wait for it. `hang_up` ends it from outside."""

    def __init__(self, address: Address, body: bytes, headers: dict[str, str], timeout: float):
        super().__init__(name="dno-vlm-judge", daemon=True)
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._given = (address, body, headers, timeout)
        self._socket: socket.socket | None = None
        self._left = False

    def run(self) -> None:
        try:
            self.reply = self._ask(*self._given)
        except Exception as error:  # told to the caller, who raises it
            self.error = error

    def hang_up(self) -> None:
        """Cut the connection: the server need not go on, and the thread ends."""
        self._left = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _ask(
        self, address: Address, body: bytes, headers: dict[str, str], timeout: float
    ) -> Reply | None:
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        connection = kind(address.host, address.port, timeout=timeout)
        try:
            connection.connect()
            self._socket = connection.sock
            if self._left:
                return None
            connection.request("POST", address.path, body, headers)
            with connection.getresponse() as response:
                return Reply(
                    response.status, response.getheader("Location", ""), self._read(response)
                )
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        parts, size = [], 0
        while not self._left and (part := response.read1(65536)):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise TooLarge
        if response.length and not self._left:
            raise http.client.IncompleteRead(b"".join(parts), response.length)
        return b"".join(parts)


def exchange(address: Address, body: bytes, headers: dict[str, str], timeout: float) -> Reply:
    """POST the body and return the reply. Proxies, redirects and cookies play no part.

    Calls `heartbeat` all along. Raises TimeoutError once `timeout` seconds are over in all, however
    slowly bytes arrive; TooLarge; OSError and HTTPException for what goes wrong on the way.
    """
    call = _Call(address, body, headers, timeout)
    deadline = time.monotonic() + timeout
    call.start()
    try:
        while call.is_alive():
            heartbeat()
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            call.join(min(POLL, left))
    finally:
        call.hang_up()
    if call.error is not None:
        raise call.error
    assert call.reply is not None
    return call.reply


def rest(seconds: float) -> None:
    """Sleep, interruptibly."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        heartbeat()
        time.sleep(min(POLL, left))
