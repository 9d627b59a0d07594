"""The private server's life, with small stand-ins for ComfyUI's main.py."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest

from comfyui_dno.launcher.server import (
    PACK_NAME,
    ComfyServer,
    Rejected,
    failure,
    free_port,
    make_base,
    unlink_pack,
)
from comfyui_dno.launcher.terminal import Bar, Problem
from comfyui_dno.launcher.websocket import EventSocket

ANSWERS = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"system": {}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def make_server(tmp_path: Path, main: str) -> ComfyServer:
    (tmp_path / "main.py").write_text(main, encoding="utf-8")
    return ComfyServer(Path(sys.executable), tmp_path, tmp_path / "base", tmp_path / "log.txt")


def test_the_server_is_stopped_when_the_block_fails(tmp_path: Path) -> None:
    server = make_server(tmp_path, ANSWERS)
    with pytest.raises(KeyboardInterrupt):
        with server:
            process = server.process
            assert process is not None and server.is_alive()
            raise KeyboardInterrupt
    assert process.poll() is not None
    assert not server.is_alive()


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(tmp_path: Path) -> None:
    server = make_server(tmp_path, "raise SystemExit('the reason for it')")
    with pytest.raises(Problem, match="stopped while it started(.|\n)*the reason for it"):
        server.__enter__()


def test_a_port_taken_in_between_is_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    main = (
        f"import pathlib\nmarker = pathlib.Path({str(marker)!r})\n"
        "if not marker.exists():\n"
        "    marker.touch()\n"
        "    raise SystemExit('[Errno 98] Address already in use')\n"
    )
    with make_server(tmp_path, main + ANSWERS) as server:
        assert server.is_alive() and marker.exists()


def test_a_server_that_ends_in_the_middle_of_a_run_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(tmp_path, ANSWERS)
    monkeypatch.setattr(ComfyServer, "history", lambda self, prompt_id: None)
    with server:
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        with pytest.raises(Problem, match="in the middle of the run"):
            server.wait("an id", timeout=5)


def test_the_base_directory_links_the_pack_and_lets_it_go(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").touch()
    base = tmp_path / "base"
    make_base(base, pack)
    make_base(base, pack)
    assert (base / "custom_nodes" / PACK_NAME / "__init__.py").exists()
    unlink_pack(base)
    unlink_pack(base)
    assert not os.path.lexists(base / "custom_nodes" / PACK_NAME)
    assert (pack / "__init__.py").exists()


def test_a_refused_workflow_names_the_node_and_the_reason() -> None:
    error = {"message": "Value too small", "details": "iterations: -1 < 0"}
    report = {"class_type": "DNO_Sampler", "errors": [error]}
    answer = {"error": {"message": "Prompt outputs failed"}, "node_errors": {"7": report}}
    text = str(Rejected(answer))
    assert "node 7, DNO_Sampler: Value too small (iterations: -1 < 0)" in text


def test_a_failed_run_is_told_from_a_good_one() -> None:
    bad = {"node_type": "DNO_Sampler", "exception_message": "No VAE. Connect one.\n"}
    messages = [["execution_start", {}], ["execution_error", bad]]
    assert failure({"status": {"messages": messages}}) == "DNO_Sampler: No VAE. Connect one."
    assert failure({"status": {"messages": [["execution_success", {}]]}}) is None
    assert failure({"status": {"messages": [["execution_interrupted", {}]]}}) == "interrupted"


def test_the_event_socket_reads_split_fragmented_and_long_frames() -> None:
    long = b'{"type": "long", "data": "' + b"x" * 70_000 + b'"}'
    frames = (
        frame(1, b'{"type": "whole"}')
        + frame(9, b"are you there")
        + frame(1, b'{"type": ', final=False)
        + frame(0, b'"parts"}')
        + frame(2, b"\x00\x01image")
        + frame(1, long)
        + frame(8, b"")
    )
    listener = socket.create_server(("127.0.0.1", 0))
    pong: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            for start in range(0, len(frames), 1000):
                connection.sendall(frames[start : start + 1000])
            pong.append(connection.recv(65536))

    thread = threading.Thread(target=serve)
    thread.start()
    events = EventSocket("127.0.0.1", listener.getsockname()[1], "client")
    received = [events.receive(5) for _ in range(4)]
    with pytest.raises(ConnectionError):
        events.receive(5)
    thread.join()
    events.close()
    listener.close()
    assert [event and event["type"] for event in received] == ["whole", "parts", "binary", "long"]
    assert received[2] == {"type": "binary", "data": b"\x00\x01image"}
    mask, body = pong[0][2:6], pong[0][6:]
    assert pong[0][0] == 0x8A
    assert bytes(b ^ mask[i % 4] for i, b in enumerate(body)) == b"are you there"


def test_the_event_socket_returns_nothing_when_nothing_comes() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            done.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    events = EventSocket("127.0.0.1", listener.getsockname()[1], "client")
    assert events.receive(0.05) is None
    done.set()
    thread.join()
    events.close()
    listener.close()


def frame(kind: int, payload: bytes, final: bool = True) -> bytes:
    """A server's WebSocket frame (RFC 6455, section 5.2)."""
    if len(payload) < 126:
        length = struct.pack("!B", len(payload))
    elif len(payload) < 65536:
        length = struct.pack("!BH", 126, len(payload))
    else:
        length = struct.pack("!BQ", 127, len(payload))
    return bytes([(128 if final else 0) | kind]) + length + payload


def test_the_bar_never_runs_backwards_and_stays_quiet_in_a_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bar("Work") as bar:
        for share in (0.1, 0.6, 0.3, 0.62, 0.9):
            bar.update(share)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0%", "60%", "90%", "100%"]


def test_free_ports_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
