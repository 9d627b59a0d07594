"""Make the shipped workflows: python tools/build_workflows.py [--thumbnails] [--only NAME ...]

The graphs of tools/workflows are built in ComfyUI's own page (Chromium), which writes both forms:
workflows/NAME.json is what an artist loads, workflows/api/NAME.json what HTTP clients send.
--thumbnails also runs each workflow and makes workflows/NAME.jpg from its saved pictures. Those
with a checkpoint run with the demo model in the loader's place, and its rewards for theirs: the
thumbnail shows what the workflow does, not what the checkpoint draws. --only names workflows.
Needs the test environment of run.py: .venv/bin/python tools/build_workflows.py
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402, F401 - maps the checkout to comfyui_dno
from PIL import Image  # noqa: E402

from comfyui_dno.launcher import comfyui  # noqa: E402
from comfyui_dno.tests.harness import ComfyServer, failure, open_page, start_server  # noqa: E402
from comfyui_dno.tools.workflows import demo_graphs, sd15_graphs, sdxl_graphs  # noqa: E402
from comfyui_dno.tools.workflows.rehearsal import (  # noqa: E402
    needs_checkpoint,
    on_demo_model,
    with_demo_rewards,
)

WORKFLOWS = ROOT / "workflows"
GRAPHS = {**demo_graphs.GRAPHS, **sd15_graphs.GRAPHS, **sdxl_graphs.GRAPHS}
REHEARSED = {
    "sd15_aesthetic": ("penguin", 101),
    "sdxl_pickscore": ("butterfly", 101),
    "few_step": ("rocket", 100),
    "inpaint_reward": ("sunflower", 100),
    "low_vram": ("mushroom", 100),
}
"""Prompt and seed of the thumbnails of workflows that need a checkpoint."""


def build(server: ComfyServer, names: list[str]) -> None:
    script = (ROOT / "tools" / "graph.js").read_text(encoding="utf-8")
    (WORKFLOWS / "api").mkdir(parents=True, exist_ok=True)
    for name in names:
        with open_page(server) as page:
            made = page.page.evaluate(script, GRAPHS[name]())
            made["ui"]["extra"].pop("ds", None)  # where the canvas happened to be scrolled
            write(WORKFLOWS / f"{name}.json", made["ui"])
            page.load(made["ui"], name)
            write(WORKFLOWS / "api" / f"{name}.json", page.graph_to_prompt())
            page.page.wait_for_timeout(500)


def write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def thumbnail(server: ComfyServer, name: str) -> None:
    """before | after, side by side, from a run of the workflow."""
    workflow = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    if needs_checkpoint(workflow):
        workflow = with_demo_rewards(on_demo_model(workflow), *REHEARSED[name])
    entry = server.run(workflow, timeout=900)
    if (message := failure(entry)) is not None:
        raise SystemExit(f"{name} failed: {message}")
    pictures = []
    for word in ("before", "after"):
        for number, data in workflow.items():
            if str(data["inputs"].get("filename_prefix", "")).endswith(word):
                reference = entry["outputs"][number]["images"][0]
                pictures.append(Image.open(io.BytesIO(server.image(reference))).convert("RGB"))
    sheet = Image.new("RGB", (512, 256))
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((256, 256), Image.Resampling.NEAREST), (256 * index, 0))
    sheet.save(WORKFLOWS / f"{name}.jpg", quality=88)


def with_example_picture(base: Path) -> None:
    """ComfyUI's own example picture, into the input folder of a server with a base of its own."""
    tree = next(comfyui.places())
    (base / "input").mkdir(exist_ok=True)
    shutil.copy(tree / "input" / "example.png", base / "input")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the shipped workflows.")
    parser.add_argument("--thumbnails", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(GRAPHS), default=list(GRAPHS))
    arguments = parser.parse_args()
    with start_server(prepare=with_example_picture) as server:
        build(server, arguments.only)
        for name in arguments.only if arguments.thumbnails else ():
            thumbnail(server, name)


if __name__ == "__main__":
    main()
