"""Make the shipped workflows: python tools/build_workflows.py [--thumbnails]

The graphs below are built in ComfyUI's own page (Chromium), which writes both forms:
workflows/NAME.json is what an artist loads, workflows/api/NAME.json what HTTP clients send.
--thumbnails also runs each workflow and makes workflows/NAME.jpg from its saved pictures.
Needs the test environment of run.py: .venv/bin/python tools/build_workflows.py
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402, F401 - maps the checkout to comfyui_dno
from PIL import Image  # noqa: E402

from comfyui_dno.tests.harness import ComfyServer, failure, open_page, start_server  # noqa: E402

Node = dict[str, Any]
WORKFLOWS = ROOT / "workflows"
BLUE, GREEN, AMBER, GREY = "#3f789e", "#3f7d4e", "#b58b2a", "#5a5a5a"


def node(
    number: int,
    kind: str,
    pos: tuple[int, int],
    size: tuple[int, int] = (300, 60),
    title: str = "",
    inputs: dict[str, tuple[int, str]] | None = None,
    **widgets: Any,
) -> Node:
    """A node: inputs name (node, output name); widgets are set in the order given."""
    return {
        "id": number,
        "type": kind,
        "pos": list(pos),
        "size": list(size),
        "title": title,
        "inputs": {name: list(link) for name, link in (inputs or {}).items()},
        "widgets": {name.replace("__", "."): value for name, value in widgets.items()},
    }


def group(title: str, x: int, y: int, width: int, height: int, color: str) -> dict[str, Any]:
    return {"title": title, "bounding": [x, y, width, height], "color": color}


def model_and_prompts(prompt: str) -> list[Node]:
    """Nodes 1 to 5: the demo model, the prompt as text and as conditioning, an empty latent."""
    clip = {"clip": (1, "CLIP")}
    return [
        node(1, "DNO_DemoModel", (20, 60), (280, 80)),
        node(2, "PrimitiveStringMultiline", (20, 200), (280, 100), "Prompt", value=prompt),
        node(
            3, "CLIPTextEncode", (340, 60), (280, 90), "Positive", {**clip, "text": (2, "STRING")}
        ),
        node(4, "CLIPTextEncode", (340, 190), (280, 110), "Negative", clip, text=""),
        node(5, "EmptyLatentImage", (340, 350), (280, 110), width=64, height=64, batch_size=1),
    ]


def saved(number: int, source: tuple[int, str], pos: tuple[int, int], name: str) -> list[Node]:
    """Two nodes: enlarge to 512 pixels without smoothing, and save as dno/NAME."""
    x, y = pos
    scale = {"upscale_method": "nearest-exact", "width": 512, "height": 512, "crop": "disabled"}
    return [
        node(number, "ImageScale", (x, y), (260, 130), "Enlarge", {"image": source}, **scale),
        node(
            number + 1,
            "SaveImage",
            (x + 300, y),
            (300, 340),
            f"Save: {name}",
            {"images": (number, "IMAGE")},
            filename_prefix=f"dno/{name}",
        ),
    ]


def sampling(seed: int, steps: int, cfg: float) -> dict[str, Any]:
    return {"seed": seed, "control_after_generate": "fixed", "steps": steps, "cfg": cfg}


FIRST_LIGHT_NOTE = """## First light
Press **Run**. The two samplers get the same model, prompt and seed.

- **KSampler** draws its picture once.
- **DNO Sampler** draws the same one first. Then it changes the *noise* that picture came from, a \
little in each iteration, so that the next picture scores higher on the **reward**.

Try another reward in *Reward Loader*, another prompt (*cat face*, *blue heart on yellow*, \
*pig, flat style*), or another seed in both samplers.

The demo model is tiny: it knows a few hundred emoji drawings at 64 x 64 pixels. For your own \
model, put your loader in place of *DNO Demo Model* and an empty latent of your size."""


def first_light() -> dict[str, Any]:
    run = {"model": (1, "MODEL"), "positive": (3, "CONDITIONING"), "negative": (4, "CONDITIONING")}
    run["latent_image"] = (5, "LATENT")
    settings = sampling(seed=7, steps=10, cfg=3.0)
    nodes = [
        *model_and_prompts("cat face"),
        node(
            6,
            "KSampler",
            (680, 60),
            (300, 270),
            "KSampler",
            run,
            **settings,
            sampler_name="euler_ancestral",
            scheduler="normal",
            denoise=1.0,
        ),
        node(
            7, "VAEDecode", (1020, 60), (220, 60), "", {"samples": (6, "LATENT"), "vae": (1, "VAE")}
        ),
        *saved(8, (7, "IMAGE"), (1280, 60), "before"),
        node(10, "DNO_RewardLoader", (340, 560), (280, 150), "", reward="darkness"),
        node(
            11,
            "DNO_Sampler",
            (680, 500),
            (340, 560),
            "",
            {**run, "vae": (1, "VAE"), "reward": (10, "reward")},
            **settings,
            scheduler="normal",
            denoise=1.0,
            iterations=30,
            learning_rate=0.02,
        ),
        *saved(12, (11, "image"), (1280, 500), "after"),
        node(
            14, "DNO_RewardCurve", (1280, 940), (260, 100), "", {"trajectory": (11, "trajectory")}
        ),
        node(
            15,
            "SaveImage",
            (1580, 940),
            (420, 340),
            "Save: curve",
            {"images": (14, "image")},
            filename_prefix="dno/curve",
        ),
        node(16, "MarkdownNote", (20, 350), (280, 420), "Read me", text=FIRST_LIGHT_NOTE),
    ]
    groups = [
        group("What KSampler draws", 660, 0, 1260, 430, BLUE),
        group("What DNO Sampler makes of the same seed", 660, 440, 1260, 430, GREEN),
        group("How it climbed", 1260, 880, 760, 420, AMBER),
    ]
    return {"nodes": nodes, "groups": groups}


GRAPHS = {"first_light": first_light}


def build(server: ComfyServer) -> None:
    script = (ROOT / "tools" / "graph.js").read_text(encoding="utf-8")
    (WORKFLOWS / "api").mkdir(parents=True, exist_ok=True)
    for name, graph in GRAPHS.items():
        with open_page(server) as page:
            made = page.page.evaluate(script, graph())
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the shipped workflows.")
    parser.add_argument("--thumbnails", action="store_true")
    arguments = parser.parse_args()
    with start_server() as server:
        build(server)
        for name in GRAPHS if arguments.thumbnails else ():
            thumbnail(server, name)


if __name__ == "__main__":
    main()
