"""Presets in the page: a chosen one shows on the widgets, a changed widget ends it."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno.tests.e2e.conftest import SAMPLER
from comfyui_dno.tests.e2e.panel_page import open_panel_page
from comfyui_dno.tests.harness import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SET = """([name, value]) => {
  const node = window.app.graph.nodes.find((each) => each.type === 'DNO_Sampler')
  const widget = node.widgets.find((each) => each.name === name)
  widget.value = value
  widget.callback?.(value)
  return Object.fromEntries(node.widgets.map((each) => [each.name, each.value]))
}"""


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas nodes", "DOM nodes"])
def test_a_preset_shows_on_the_widgets_until_one_is_changed(
    server: ComfyServer, vue_nodes: bool
) -> None:
    inputs = server.object_info(SAMPLER)[SAMPLER]["input"]["optional"]
    presets = inputs["preset"][1]["dno_presets"]
    with open_panel_page(server, vue_nodes) as page:
        page.load("first_light")

        def put(name: str, value: Any) -> dict[str, Any]:
            return dict(page.page.evaluate(SET, [name, value]))

        for name, values in presets.items():
            shown = put("preset", name)
            assert {key: shown[key] for key in values} == values
            assert shown["preset"] == name
        shown = put("iterations", 33)
        assert shown["preset"] == "custom" and shown["iterations"] == 33
        assert shown["learning_rate"] == values["learning_rate"]
        sent = page.comfy.graph_to_prompt()
        (node,) = [each for each in sent.values() if each["class_type"] == SAMPLER]
        assert node["inputs"]["preset"] == "custom" and node["inputs"]["iterations"] == 33
