"""Make the pictures of the help pages and of the README: python tools/node_pictures.py

Every node is photographed in ComfyUI's own page (Chromium, nodes as DOM elements), after a short
run of a shipped workflow where it belongs to one: web/docs/pictures/NODE_ID.png. The live panel in
the middle of a run is docs/pictures/panel.png. --only names one node, or "panel".
Needs the test environment of run.py: .venv/bin/python tools/node_pictures.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402, F401 - maps the checkout to comfyui_dno
from PIL import Image  # noqa: E402

from comfyui_dno.tests.chromium import find_chromium  # noqa: E402
from comfyui_dno.tests.harness import (  # noqa: E402
    CHROMIUM_FLAGS,
    ComfyPage,
    ComfyServer,
    start_server,
)

SHARPNESS = 1.5
"""Pixels of a picture for one of the page's."""
MARGIN = 10
SIZES = {"DNO_RewardCurve": [620, 640], "DNO_Sampler": [360, 700]}
"""Sizes on the canvas where that of the workflow shows too little."""
SEEDS = {"two_rewards": 5, "black_box": 3}
SHOTS = {
    "two_rewards": (
        "DNO_DemoModel",
        "DNO_RewardLoader",
        "DNO_RewardMix",
        "DNO_ProbabilityRegularizer",
        "DNO_Sampler",
        "DNO_PickIteration",
        "DNO_RewardCurve",
    ),
    "black_box": ("DNO_ZOGradientEstimator", "DNO_StopRules", "DNO_SaveTrajectory"),
    "": ("DNO_LoadTrajectory", "DNO_SamplerAdvanced"),
}
"""The nodes by the workflow that they are taken from; those under "" stand alone."""

PREPARE = """() => {
  const shot = window.shot = {}
  shot.named = (type) => app.graph._nodes.find((n) => n.type === type)
  shot.alone = (type) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [0, 0]
  }
  shot.set = (values) => {
    const node = shot.named('DNO_Sampler')
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((w) => w.name === name)
      widget.value = value
      widget.callback?.(value)
    }
  }
  shot.frame = (node, left, top, size) => {
    node.title = node.constructor.title
    if (size) node.setSize(size)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [left - node.pos[0], top - node.pos[1]]
    app.canvas.setDirty(true, true)
    const style = document.querySelector('#shot') ?? document.createElement('style')
    style.id = 'shot'
    style.textContent = `[data-node-id]:not([data-node-id="${node.id}"]) { visibility: hidden }`
    document.head.append(style)
  }
}"""
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": True,
    "Comfy.LinkRenderMode": -1,  # hidden
    "Comfy.Minimap.Visible": False,
}


@contextlib.contextmanager
def sharp_page(server: ComfyServer) -> Iterator[ComfyPage]:
    """The server's page, dark, at SHARPNESS."""
    from playwright.sync_api import sync_playwright

    file = server.base / "user" / "default" / "comfy.settings.json"
    file.write_text(json.dumps(SETTINGS), encoding="utf-8")
    size: Any = {"width": 1500, "height": 1700}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(viewport=size, device_scale_factor=SHARPNESS)
            page.goto(server.url)
            comfy = ComfyPage(page, server)
            comfy.wait_until_ready()
            page.evaluate(PREPARE)
            yield comfy
        finally:
            browser.close()


def open_workflow(comfy: ComfyPage, name: str, **widgets: Any) -> None:
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    graph["groups"] = []
    comfy.load(graph, name)
    comfy.page.evaluate("(values) => shot.set(values)", widgets)


def photograph(comfy: ComfyPage, node_type: str, file: Path, colours: int = 128) -> None:
    """The node as the page draws it, with a little of the canvas around."""
    page = comfy.page
    node_id = page.evaluate(
        "([type, size]) => { const n = shot.named(type); shot.frame(n, 420, 120, size);"
        " return n.id }",
        [node_type, SIZES.get(node_type)],
    )
    page.mouse.move(5, 1600)
    page.wait_for_timeout(1200)
    save(page, page.locator(f'[data-node-id="{node_id}"]').bounding_box(), file, colours)


def save(page: Any, box: dict[str, float], file: Path, colours: int, margin: int = MARGIN) -> None:
    clip = {"x": box["x"] - margin, "y": box["y"] - margin}
    clip |= {"width": box["width"] + 2 * margin, "height": box["height"] + 2 * margin}
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {picture.width} x {picture.height}, {file.stat().st_size} B")


def panel(comfy: ComfyPage, file: Path) -> None:
    """The panel while the run goes on, after a weight has been lowered."""
    page = comfy.page
    open_workflow(comfy, "two_rewards", steps=10, iterations=24, seed=SEEDS["two_rewards"])
    page.evaluate(
        "() => { const n = shot.named('DNO_Sampler'); n.setSize([760, n.size[1]]);"
        " shot.frame(n, 420, 120, null) }"
    )
    page.click("[data-testid=queue-button]")
    page.wait_for_selector(".dno-panel[data-state=running]:not([data-empty])", timeout=120_000)
    wait_iteration(page, 7)
    weight = page.get_by_label("Weight of colour #2060ff, number")
    weight.fill("0.4")
    weight.press("Enter")
    wait_iteration(page, 15)
    page.evaluate("() => document.activeElement.blur()")
    page.mouse.move(5, 1600)
    page.wait_for_timeout(300)
    save(page, page.locator(".dno-panel").bounding_box(), file, 256, margin=3)
    page.evaluate("() => app.api.interrupt()")
    page.wait_for_selector(".dno-panel[data-state=cancelled]", timeout=60_000)


def wait_iteration(page: Any, index: int) -> None:
    page.wait_for_function(
        "(i) => +document.querySelector('.dno-scrub output').textContent >= i",
        arg=index,
        timeout=120_000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the help pages.")
    parser.add_argument("--only", help='a node id, or "panel"')
    only = parser.parse_args().only
    folder = ROOT / "web" / "docs" / "pictures"
    with start_server() as server:
        for workflow, nodes in SHOTS.items():
            wanted = [node for node in nodes if only in (None, node)]
            if not wanted:
                continue
            with sharp_page(server) as comfy:
                if workflow:
                    run = {"steps": 6, "iterations": 16, "seed": SEEDS[workflow]}
                    open_workflow(comfy, workflow, **run)
                    ended = comfy.queue_and_wait()
                    if ended != "execution_success":
                        raise SystemExit(f"{workflow}: {ended}")
                for node in wanted:
                    if not workflow:
                        comfy.page.evaluate(
                            "(type) => { app.graph.clear(); shot.alone(type) }", node
                        )
                    photograph(comfy, node, folder / f"{node}.png")
        if only in (None, "panel"):
            with sharp_page(server) as comfy:
                panel(comfy, ROOT / "docs" / "pictures" / "panel.png")


if __name__ == "__main__":
    main()
