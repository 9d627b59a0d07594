"""Every shipped workflow: as ComfyUI's page opens it, and as a real server runs it.

Those that need a checkpoint run on the demo model, with small reward models of the published
formats under the names that the workflows ask for.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from comfyui_dno.rewards.files.catalogue import SOURCES
from comfyui_dno.tests.e2e.conftest import SAMPLER, WORKFLOWS, api_workflow, node_of
from comfyui_dno.tests.e2e.test_reward_models import LAION_WIDTH, write_wide_clip
from comfyui_dno.tests.harness import ComfyServer, failure, open_page, start_server
from comfyui_dno.tests.rewards import blip_factory, clip_factory
from comfyui_dno.tests.rewards.test_aesthetic import PublishedV2, trained
from comfyui_dno.tools.workflows.rehearsal import needs_checkpoint, on_demo_model

NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
CHECKPOINTS = [name for name in NAMES if needs_checkpoint(api_workflow(name))]
SAMPLERS = (SAMPLER, "DNO_SamplerAdvanced")
HEADING = 30


def write_models(models: Path) -> None:
    models.mkdir(parents=True)
    clip_factory.write_clip(models / "PickScore_v1")
    clip_factory.write_hps(models / "HPS_v2.1_compressed.pt")
    blip_factory.write_blip(models / "ImageReward")
    heads = {
        "clip-vit-large-patch14": (LAION_WIDTH, PublishedV2, "sac+logos+ava1-l14-linearMSE.pth"),
        "clip-vit-base-patch32": (512, one_layer, "sa_0_4_vit_b_32_linear.pth"),
    }
    for tower, (width, head, file) in heads.items():
        # CLIPScore is cut at 0, and with this seed the first picture lies above it
        write_wide_clip(models / tower, width, seed=2)
        torch.save(trained(head(width)).state_dict(), models / file)


def one_layer(width: int) -> nn.Linear:
    return nn.Linear(width, 1)


def write_picture(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    picture = Image.new("RGB", (96, 80), "#5c92fe")
    ImageDraw.Draw(picture).ellipse((24, 10, 72, 70), fill="#fea6d6")
    picture.save(file)


def prepare(base: Path) -> None:
    write_models(base / "models" / "dno_rewards")
    write_picture(base / "input" / "example.png")


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    with start_server(prepare=prepare) as running:
        yield running


def ui_workflow(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def test_the_workflows_that_the_readme_promises_are_shipped() -> None:
    for name in ("first_light", "black_box", "sd15_aesthetic", "sdxl_pickscore", "few_step"):
        assert name in NAMES
    assert {"inpaint_reward", "low_vram"} <= set(CHECKPOINTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_comes_with_its_api_form_and_its_thumbnail(name: str) -> None:
    assert api_workflow(name)
    with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
        assert min(thumbnail.size) >= 256
    assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 300_000


def test_comfyui_lists_the_workflows_as_templates(server: ComfyServer) -> None:
    assert sorted(server.get("/workflow_templates")["direct-noise-optimization"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another_and_groups_stay_apart(name: str) -> None:
    workflow = ui_workflow(name)
    nodes = {
        f"{node['id']} {node['type']}": (x, y - HEADING, x + w, y + h)
        for node in workflow["nodes"]
        for (x, y), (w, h) in [(node["pos"], node["size"])]
    }
    groups = {
        group["title"]: (x, y, x + w, y + h)
        for group in workflow["groups"]
        for x, y, w, h in [group["bounding"]]
    }
    for boxes in (nodes, groups):
        for one, other in itertools.combinations(boxes, 2):
            a, b = boxes[one], boxes[other]
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"{one} and {other}"


@pytest.mark.parametrize("name", NAMES)
def test_a_note_explains_the_workflow_and_can_be_read_in_both_renderers(name: str) -> None:
    (note,) = (node for node in ui_workflow(name)["nodes"] if node["type"] == "MarkdownNote")
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and len(text) > 400
    assert "`" not in text, "DOM nodes show code blue on blue"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_loaders_say_where_their_files_are_from_and_the_note_names_them(name: str) -> None:
    published = {source.name: source for source in SOURCES}
    nodes = ui_workflow(name)["nodes"]
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        files = {model["name"]: model for model in node["properties"].get("models", [])}
        values = set(map(str, node.get("widgets_values") or []))
        wanted = {value for value in values if value.endswith((".safetensors", ".pt", ".pth"))}
        assert set(files) == wanted
        for file, model in files.items():
            if node["type"] == "CheckpointLoaderSimple":
                assert model["directory"] == "checkpoints"
                assert re.match(
                    r"https://huggingface\.co/(Comfy-Org|stabilityai)/[\w.-]+/resolve/main/",
                    model["url"],
                )
                assert model["url"].endswith(f"/{file}")
            else:
                assert model["directory"] == "dno_rewards"
                assert model["url"] == published[file].files[0].url
        for value in values & (wanted | set(published)):
            assert value in note["widgets_values"][0]


@pytest.mark.slow
def test_a_server_runs_first_light_as_it_is_shipped(server: ComfyServer) -> None:
    workflow = api_workflow("first_light")
    entry = server.run(workflow, timeout=1200)
    assert failure(entry) is None
    numbers = entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0]
    assert numbers["iterations"] == workflow[node_of(workflow, SAMPLER)]["inputs"]["iterations"]
    assert numbers["reward_after"] > numbers["reward_before"]
    assert_pictures_are_saved(server, workflow, entry)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in CHECKPOINTS])
def test_a_server_runs_the_workflow_and_the_reward_climbs(server: ComfyServer, name: str) -> None:
    workflow, entry = rehearsed(server, name, iterations=4, probes=8)
    numbers = entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0]
    assert numbers["reward_after"] > numbers["reward_before"]
    assert_pictures_are_saved(server, workflow, entry)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_workflow_for_a_checkpoint_runs_to_its_end_on_the_demo_model(
    server: ComfyServer, name: str
) -> None:
    workflow, entry = rehearsed(server, name, iterations=5)
    kind = next(data["class_type"] for data in workflow.values() if data["class_type"] in SAMPLERS)
    numbers = entry["outputs"][node_of(workflow, kind)]["dno"][0]
    assert numbers["iterations"] == 5
    if name != "low_vram":  # three probes may point anywhere
        assert numbers["reward_after"] > numbers["reward_before"]
    assert_pictures_are_saved(server, workflow, entry)


@pytest.mark.slow
def test_the_inpainting_workflow_changes_its_rectangle_alone(server: ComfyServer) -> None:
    workflow, entry = rehearsed(server, "inpaint_reward", iterations=6)
    before, after = (saved_picture(server, workflow, entry, word) for word in ("before", "after"))
    place = workflow[node_of(workflow, "MaskComposite")]["inputs"]
    size = max(
        (data["inputs"] for data in workflow.values() if data["class_type"] == "SolidMask"),
        key=lambda inputs: inputs["value"],
    )
    rows = slice(place["y"], place["y"] + size["height"])
    columns = slice(place["x"], place["x"] + size["width"])
    change = np.abs(after - before).mean(axis=2)
    around = change.copy()
    around[max(rows.start - 8, 0) : rows.stop + 8, max(columns.start - 8, 0) : columns.stop + 8] = 0
    assert change[rows, columns].mean() > 1
    assert around.max() <= 1, "more than a grey level"


def rehearsed(
    server: ComfyServer, name: str, iterations: int, probes: int = 3
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The workflow, made short and with the demo model for a checkpoint; its run's history."""
    workflow = api_workflow(name)
    if needs_checkpoint(workflow):
        workflow = on_demo_model(workflow)
    short = {"steps": 4, "iterations": iterations, "method.probes": probes, "screen_seeds": 2}
    for data in workflow.values():
        for key, most in short.items():
            if key in data["inputs"]:
                data["inputs"][key] = min(data["inputs"][key], most)
    entry = server.run(workflow, timeout=300)
    assert failure(entry) is None
    return workflow, entry


def assert_pictures_are_saved(
    server: ComfyServer, workflow: dict[str, Any], entry: dict[str, Any]
) -> None:
    for word in ("before", "after", "curve"):
        picture = saved_picture(server, workflow, entry, word)
        assert picture.min() < picture.max()


def saved_picture(
    server: ComfyServer, workflow: dict[str, Any], entry: dict[str, Any], word: str
) -> np.ndarray:
    """What Save Image dno/WORD saved, [H, W, 3], 0 to 255."""
    (node,) = (
        number
        for number, data in workflow.items()
        if data["inputs"].get("filename_prefix") == f"dno/{word}"
    )
    (reference,) = entry["outputs"][node]["images"]
    with Image.open(io.BytesIO(server.image(reference))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


@pytest.mark.browser
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas nodes", "DOM nodes"])
def test_the_page_opens_every_workflow_and_would_queue_its_api_form(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_page(server, vue_nodes) as page:
        for name in NAMES:
            page.load(ui_workflow(name), name)
            assert page.missing_nodes() == []
            assert page.graph_to_prompt() == api_workflow(name)
        assert page.errors == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas nodes", "DOM nodes"])
def test_the_run_button_runs_first_light_and_the_nodes_show_their_pictures(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_page(server, vue_nodes) as page:
        page.load(ui_workflow("first_light"), "first_light")
        page.page.evaluate(
            "(seed) => { for (const node of window.app.graph._nodes)"
            " for (const widget of node.widgets || []) {"
            "  if (widget.name === 'steps') widget.value = 4;"
            "  if (widget.name === 'iterations') widget.value = 2;"
            "  if (widget.name === 'seed') widget.value = seed } }",
            100 + vue_nodes,
        )
        assert page.queue_and_wait() == "execution_success"
        page.page.wait_for_function(
            "() => { const shown = window.app.nodeOutputs;"
            " return window.app.graph._nodes.filter(n => n.type === 'SaveImage')"
            "  .every(n => shown[n.id]?.images?.length > 0) }",
            timeout=20_000,
        )
        assert page.errors == []


def test_the_workflow_files_hold_no_private_paths() -> None:
    for file in [*WORKFLOWS.glob("*.json"), *Path(WORKFLOWS / "api").glob("*.json")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'"(/|[A-Za-z]:\\)[\w.-]+[/\\]', text), "an absolute path"
