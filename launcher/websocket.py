"""A small WebSocket client (RFC 6455) for ComfyUI's progress events: text frames, loopback only."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class EventSocket:
    """ComfyUI's event stream for one client id.

    `receive(timeout)` returns the next JSON event as a dict, {"type": "binary", "data": bytes} for
    a preview, or None when nothing came in time. Raises ConnectionError when the server has gone.
    """

    def __init__(self, host: str, port: int, client_id: str) -> None:
        self.socket = socket.create_connection((host, port), timeout=10)
        self.pending = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {host}:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        while b"\r\n\r\n" not in self.pending:
            self._read_more()
        head, self.pending = self.pending.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError("the server refused the event stream")

    def receive(self, timeout: float) -> dict[str, Any] | None:
        self.socket.settimeout(timeout)
        message, message_kind = b"", 0
        while True:
            while (frame := self._take_frame()) is None:
                try:
                    self._read_more()
                except TimeoutError:
                    if message_kind == 0:
                        return None
            final, kind, payload = frame
            if kind == CLOSE:
                raise ConnectionError("the server closed the event stream")
            if kind == PING:
                self._send(PONG, payload)
            if kind in (PING, PONG):
                continue
            message_kind = kind or message_kind
            message += payload
            if final:
                break
        if message_kind == TEXT:
            return dict(json.loads(message))
        return {"type": "binary", "data": message}

    def close(self) -> None:
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass  # the server may be gone, and that is what closing is for
        self.socket.close()

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has gone")
        self.pending += data

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """(final, opcode, payload) if a whole frame has come; server frames carry no mask."""
        if len(self.pending) < 2:
            return None
        first, second = self.pending[0], self.pending[1] & 127
        start, length = 2, second
        if second >= 126:
            size, code = (2, "!H") if second == 126 else (8, "!Q")
            if len(self.pending) < 2 + size:
                return None
            start, length = 2 + size, struct.unpack(code, self.pending[2 : 2 + size])[0]
        if len(self.pending) < start + length:
            return None
        payload = self.pending[start : start + length]
        self.pending = self.pending[start + length :]
        return bool(first & 128), first & 15, payload

    def _send(self, kind: int, payload: bytes) -> None:
        """Send one short frame, masked as the standard asks of clients."""
        mask = os.urandom(4)
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload[:125]))
        self.socket.sendall(bytes([128 | kind, 128 | len(body)]) + mask + body)
