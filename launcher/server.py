"""A private ComfyUI server: its base directory, its life, and what one asks it over HTTP."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from .environment import ROOT
from .terminal import Problem, tail
from .websocket import EventSocket

HOST = "127.0.0.1"
PACK_NAME = "direct-noise-optimization"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user/default")
# Otherwise the front-end greets a new user with a dialog that lies over the page.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.47.12"}


def make_base(base: Path, pack: Path = ROOT) -> None:
    """Make a base directory for ComfyUI with the pack linked into its custom_nodes."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    unlink_pack(base)
    link = base / "custom_nodes" / PACK_NAME
    if os.name == "nt":  # a junction needs no administrator, a symbolic link does
        subprocess.run(
            ["cmd", "/c", "mklink", "/J", str(link), str(pack)], check=True, capture_output=True
        )
    else:
        link.symlink_to(pack, target_is_directory=True)


def unlink_pack(base: Path) -> None:
    """Remove the link to the pack, never what it points to."""
    link = base / "custom_nodes" / PACK_NAME
    if os.path.lexists(link):
        if os.name == "nt":
            os.rmdir(link)
        else:
            link.unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class ComfyServer:
    """A ComfyUI process on a loopback port, stopped when the `with` block ends, however it ends.

    python: an interpreter with ComfyUI's packages. tree: ComfyUI. base: made by `make_base`.
    log: the file its output goes to. cpu: keep it off the GPU.
    """

    def __init__(
        self,
        python: Path,
        tree: Path,
        base: Path,
        log: Path,
        cpu: bool = True,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.command = [str(python), "-s", str(tree / "main.py"), "--listen", HOST]
        self.command += ["--disable-api-nodes", "--base-directory", str(base)]
        self.command += ["--database-url", "sqlite:///:memory:"]
        self.command += ["--disable-auto-launch", *extra, *(["--cpu"] if cpu else [])]
        self.tree, self.base, self.log, self.cpu = tree, base, log, cpu
        self.client_id = uuid.uuid4().hex
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        # A proxy set for the internet must not be asked for the loopback address.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> ComfyServer:
        for attempt in range(3):
            self._start()
            try:
                self._wait_until_ready(timeout=240)
                return self
            except BaseException:
                self.stop()
                if attempt < 2 and "address already in use" in self.log_text().lower():
                    continue  # another process took the free port between our look and the bind
                raise
        raise AssertionError("unreachable")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        self.port = free_port()
        environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        environment.setdefault("HF_HUB_OFFLINE", "1")
        if self.cpu:
            environment["OMP_NUM_THREADS"] = "1"  # tiny models: two busy threads spin
        # Its own process group: Ctrl-C reaches us, and we stop the server in order.
        group: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
            if os.name == "nt"
            else {"start_new_session": True}
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        atexit.register(self.stop)  # a signal may fall between __enter__ and the block
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self.port)],
                cwd=self.tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                **group,
            )

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise Problem(
                    "ComfyUI stopped while it started. The end of its log says why; with a missing "
                    f"package, delete .venv and run this again.\n{tail(self.log_text())}"
                )
            try:
                self.get("/system_stats", timeout=5)
                return
            except OSError:
                time.sleep(0.2)
        raise Problem(
            f"ComfyUI did not answer within {timeout:.0f} seconds. Close other programs and run "
            f"this again.\n{tail(self.log_text())}"
        )

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the process: politely, then for certain."""
        atexit.unregister(self.stop)
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def get(self, path: str, timeout: float = 60) -> Any:
        """GET a JSON answer. Raises OSError (URLError) if the server is not there."""
        with self.opener.open(self.url + path, timeout=timeout) as answer:
            return json.loads(answer.read())

    def get_bytes(self, path: str) -> bytes:
        with self.opener.open(self.url + path, timeout=60) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST JSON. An HTTP error comes back as {"status": code, **its JSON}."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with self.opener.open(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
            refusal = json.loads(text) if text.startswith(b"{") else {"error": text.decode()}
            return {"status": error.code, **refusal}
        return json.loads(text) if text.strip() else {}

    def prompt(self, workflow: dict[str, Any]) -> str:
        """Queue an API-format workflow; returns its id. Raises Rejected with the node errors.

        ComfyUI would run those outputs of a workflow that have no error; here all or nothing runs.
        """
        answer = self.post("/prompt", {"prompt": workflow, "client_id": self.client_id})
        prompt_id = answer.get("prompt_id")
        if prompt_id is not None and not answer.get("node_errors"):
            return str(prompt_id)
        if prompt_id is not None:
            self.post("/queue", {"delete": [prompt_id]})
            self.post("/interrupt", {"prompt_id": prompt_id})
        raise Rejected(answer)

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The finished prompt's record, or None while it waits or runs."""
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        return dict(entry) if entry else None

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """Wait for a prompt to end, well or badly; returns its history entry."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (entry := self.history(prompt_id)) is not None:
                return entry
            if not self.is_alive():
                raise Problem(
                    "ComfyUI ended in the middle of the run. The end of its log says why; free "
                    f"some memory and run this again.\n{tail(self.log_text())}"
                )
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} still runs after {timeout:.0f} s")

    def run(self, workflow: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        return self.wait(self.prompt(workflow), timeout)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def is_idle(self) -> bool:
        queue = self.get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    def image(self, reference: dict[str, str]) -> bytes:
        """The PNG that a history entry's `images` item names."""
        return self.get_bytes("/view?" + urllib.parse.urlencode(reference))

    def object_info(self, node: str = "") -> dict[str, Any]:
        return dict(self.get("/object_info" + (f"/{node}" if node else "")))

    def system_stats(self) -> dict[str, Any]:
        return dict(self.get("/system_stats"))

    def events(self) -> EventSocket:
        """The event stream of this object's client id: progress, previews, errors."""
        return EventSocket(HOST, self.port, self.client_id)


class Rejected(Problem):
    """ComfyUI refused a workflow before running it. `answer` is its JSON."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        lines = []
        for node, report in (answer.get("node_errors") or {}).items():
            for error in report.get("errors", []):
                what = f"{error.get('message')} ({error.get('details')})"
                lines.append(f"    node {node}, {report.get('class_type')}: {what}")
        error = answer.get("error")
        reason = error.get("message") if isinstance(error, dict) else error or "a node is not fit"
        details = "\n".join(lines)
        super().__init__(
            f"ComfyUI refused the workflow: {reason}. Update the pack and ComfyUI so that they "
            f"match.\n{details}"
        )


def failure(entry: dict[str, Any]) -> str | None:
    """The message of the node that failed in a history entry, or None if it ended well."""
    for kind, data in entry.get("status", {}).get("messages", []):
        if kind == "execution_error":
            return f"{data.get('node_type')}: {str(data.get('exception_message', '')).strip()}"
        if kind == "execution_interrupted":
            return "interrupted"
    return None
