"""A real ComfyUI server and a real browser for tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from comfyui_dno.launcher import comfyui
from comfyui_dno.launcher.server import ComfyServer, Rejected, failure, make_base, unlink_pack
from comfyui_dno.tests.chromium import find_chromium

__all__ = [
    "ComfyPage",
    "ComfyServer",
    "Rejected",
    "failure",
    "open_page",
    "open_url",
    "start_server",
]

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def start_server(
    cpu: bool = True,
    extra: tuple[str, ...] = (),
    pack: Path = ROOT,
    prepare: Callable[[Path], None] | None = None,
) -> Iterator[ComfyServer]:
    """A private server with the pack (the checkout, or a copy of it), in this interpreter.

    prepare: puts more packs and models into its base directory before it starts.
    """
    tree = next(comfyui.places(), None)
    if tree is None:
        raise RuntimeError("No ComfyUI was found. Run the tests with: python run.py test")
    base = Path(tempfile.mkdtemp(prefix="dno-server-"))
    try:
        make_base(base, pack)
        if prepare is not None:
            prepare(base)
        log = base / "comfyui.log"
        with ComfyServer(Path(sys.executable), tree, base, log, cpu, extra) as server:
            yield server
    finally:
        unlink_pack(base)
        shutil.rmtree(base, ignore_errors=True)


class ComfyPage:
    """ComfyUI's page in a browser. `page` is playwright's Page; `errors` what it complained of."""

    def __init__(self, page: Any, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(
            "() => window.app && window.app.extensionManager"
            " && !document.querySelector('#splash-loader')"
            " && document.querySelector('[data-testid=queue-button]')",
            timeout=90_000,
        )

    def load(self, workflow: dict[str, Any], name: str = "test") -> None:
        """Open a UI-format workflow as if it were dropped on the page."""
        self.page.evaluate(
            "async ([graph, name]) => { await window.app.loadGraphData(graph, true, true, name) }",
            [workflow, name],
        )
        self.page.wait_for_timeout(500)

    def graph_to_prompt(self) -> dict[str, Any]:
        """The API form that the page would queue."""
        return dict(self.page.evaluate("async () => (await window.app.graphToPrompt()).output"))

    def serialize(self) -> dict[str, Any]:
        return dict(self.page.evaluate("() => window.app.graph.serialize()"))

    def missing_nodes(self) -> list[str]:
        """Types in the graph that this server does not know."""
        return list(
            self.page.evaluate(
                "() => window.app.graph._nodes.map(n => n.type)"
                ".filter(t => !window.LiteGraph.registered_node_types[t]"
                " && !['Note', 'MarkdownNote', 'Reroute'].includes(t))"
            )
        )

    def queue_and_wait(self, timeout: float = 180.0) -> str:
        """Click the queue button; "execution_success" or "execution_error: ..." once it ended."""
        self.page.evaluate(
            "() => { window.dnoEnd = null;"
            " for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])"
            "  window.app.api.addEventListener(kind, e => { window.dnoEnd = kind +"
            "   (kind === 'execution_error' ? ': ' + e.detail.exception_message : '') }) }"
        )
        self.page.click("[data-testid=queue-button]")
        self.page.wait_for_function("() => window.dnoEnd", timeout=timeout * 1000)
        return str(self.page.evaluate("() => window.dnoEnd"))


@contextlib.contextmanager
def open_url(url: str, size: tuple[int, int] = (1600, 1000)) -> Iterator[Any]:
    """A playwright Page on that address, in a fresh profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.goto(url)
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(
    server: ComfyServer, vue_nodes: bool = False, size: tuple[int, int] = (1600, 1000)
) -> Iterator[ComfyPage]:
    """The server's page in a fresh profile. vue_nodes: draw nodes as DOM elements (Nodes 2.0)."""
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue_nodes}
    file = server.base / "user" / "default" / "comfy.settings.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    with open_url(server.url, size) as page:
        comfy_page = ComfyPage(page, server)
        comfy_page.wait_until_ready()
        yield comfy_page


def _chromium() -> str:
    found = find_chromium()
    if found is None:
        raise RuntimeError("Chromium is missing. Install it: apt-get install chromium")
    return found
