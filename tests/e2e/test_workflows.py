"""Every shipped workflow: as ComfyUI's page opens it, and as a real server runs it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui_dno.tests.e2e.conftest import SAMPLER, WORKFLOWS, api_workflow, node_of
from comfyui_dno.tests.harness import ComfyServer, failure, open_page

NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))


def ui_workflow(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def test_first_light_is_shipped() -> None:
    assert "first_light" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_comes_with_its_api_form_and_its_thumbnail(name: str) -> None:
    assert api_workflow(name)
    with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
        assert min(thumbnail.size) >= 256
    assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 300_000


def test_comfyui_lists_the_workflows_as_templates(server: ComfyServer) -> None:
    assert sorted(server.get("/workflow_templates")["direct-noise-optimization"]) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_server_runs_the_workflow_and_the_reward_climbs(server: ComfyServer, name: str) -> None:
    workflow = api_workflow(name)
    entry = server.run(workflow, timeout=1200)
    assert failure(entry) is None
    numbers = entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0]
    assert numbers["reward_after"] > numbers["reward_before"]
    saved = [node for node, data in workflow.items() if data["class_type"] == "SaveImage"]
    assert saved
    for node in saved:
        for reference in entry["outputs"][node]["images"]:
            with Image.open(io.BytesIO(server.image(reference))) as image:
                assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]


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
