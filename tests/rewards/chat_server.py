"""A small OpenAI-compatible server on 127.0.0.1 that answers as a test tells it, also badly."""

from __future__ import annotations

import base64
import io
import json
import math
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Question:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][0]["text"]

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        url = self.body["messages"][0]["content"][1]["image_url"]["url"]
        kind, data = url.split(",", 1)
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


Act = Callable[["Handler", Question], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = Question(self.path, dict(self.headers), body)
        with self.server.lock:
            index = len(self.server.asked)
            self.server.asked.append(question)
        acts = self.server.acts
        try:
            acts[min(index, len(acts) - 1)](self, question)
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()
            self.close_connection = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def is_left(self, seconds: float) -> bool:
        """Whether the client hangs up within so many seconds."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        left = bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        if left:
            self.server.left.set()
        return left

    def log_message(self, *_: Any) -> None:
        pass


class ChatServer(ThreadingHTTPServer):
    """acts: what to do with the first, second ... request; the last one is repeated.

    asked: what arrived. left: set once a client hung up before it had its answer. release: to be
    set to let hanging answers go.
    """

    daemon_threads = True

    def __init__(self, acts: tuple[Act, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts = acts
        self.asked: list[Question] = []
        self.left, self.release, self.lock = threading.Event(), threading.Event(), threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def serving(*acts: Act) -> Iterator[ChatServer]:
    server = ChatServer(acts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Token:
    """A token of an answer, with the probabilities of the tokens in its place."""

    text: str
    likeliest: dict[str, float] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        found = [{"token": t, "logprob": math.log(p)} for t, p in self.likeliest.items()]
        return {"token": self.text, "logprob": 0.0, "top_logprobs": found}


def completion(text: str | None, tokens: tuple[Token, ...] = (), cut: bool = False) -> bytes:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "length" if cut else "stop",
    }
    if tokens:
        choice["logprobs"] = {"content": [token.json() for token in tokens]}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode("utf-8")


def say(text: str | None, *tokens: Token, cut: bool = False) -> Act:
    return lambda handler, question: handler.send(200, completion(text, tokens, cut))


def send(status: int, body: bytes = b"", **headers: str) -> Act:
    return lambda handler, question: handler.send(status, body, **headers)


def judge_brightness(handler: Handler, question: Question) -> None:
    """A model that answers with the mean pixel, from 0 to 10."""
    handler.send(200, completion(f"{question.pixels.mean() / 25.5:.4f}"))


def hang(handler: Handler, question: Question) -> None:
    """Take the question and never answer."""
    while not handler.is_left(0.1) and not handler.server.release.is_set():
        pass
    handler.close_connection = True


def hang_up(handler: Handler, question: Question) -> None:
    handler.close_connection = True


def drip(handler: Handler, question: Question) -> None:
    """One byte of an endless answer every 20 ms, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**6))
    handler.end_headers()
    while not handler.server.release.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True


def drip_headers(handler: Handler, question: Question) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.release.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()
    handler.close_connection = True


def flood(handler: Handler, question: Question) -> None:
    """An answer without an end, as fast as it is taken."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while not handler.server.release.is_set():
        handler.wfile.write(b" " * 65536)
    handler.close_connection = True


def cut_off(handler: Handler, question: Question) -> None:
    """Half of what the header promises."""
    body = completion("7")
    handler.send_response(200)
    handler.send_header("Content-Length", str(2 * len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True
