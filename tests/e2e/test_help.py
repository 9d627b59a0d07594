"""A node's help and tooltips, as ComfyUI's own page shows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui_dno.tests.e2e.conftest import WORKFLOWS
from comfyui_dno.tests.harness import ROOT, ComfyServer, open_page

pytestmark = pytest.mark.browser

LOAD_PICTURE = """async (markdown) => {
  const source = '/extensions/direct-noise-optimization/docs/'
  const holder = document.createElement('div')
  holder.innerHTML = window.app.extensionManager.renderMarkdownToHtml(markdown, source)
  const picture = holder.querySelector('img')
  await picture.decode()
  return [picture.naturalWidth, holder.querySelector('h1').textContent]
}"""

SOCKET = """([type, name]) => {
  const has = (node) => node.inputs.some((input) => input.name === name)
  const node = app.graph._nodes.find((n) => n.type === type && has(n))
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [400 - node.pos[0], 300 - node.pos[1]]
  app.canvas.setDirty(true, true)
  const [x, y] = node.getConnectionPos(true, node.inputs.findIndex((i) => i.name === name))
  const box = app.canvas.canvas.getBoundingClientRect()
  return [box.left + x + app.canvas.ds.offset[0] + 4, box.top + y + app.canvas.ds.offset[1]]
}"""


def workflow(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def test_the_info_button_opens_the_page_with_its_picture(server: ComfyServer) -> None:
    with open_page(server, vue_nodes=True) as comfy:
        comfy.load(workflow("first_light"), "first_light")
        comfy.page.evaluate(
            "() => app.canvas.selectNodes([app.graph._nodes.find((n) => n.type === 'DNO_Sampler')])"
        )
        comfy.page.click("[data-testid=info-button]")
        help_page = comfy.page.locator(".node-help-content")
        help_page.locator("h1", has_text="DNO Sampler").wait_for()
        picture = help_page.locator("img").first
        picture.wait_for()
        assert picture.evaluate("async (i) => { await i.decode(); return i.naturalWidth }") > 300
        assert comfy.errors == []


def test_every_help_page_shows_its_picture(server: ComfyServer) -> None:
    with open_page(server) as comfy:
        for file in sorted((ROOT / "web" / "docs").glob("*.md")):
            text = file.read_text(encoding="utf-8")
            width, title = comfy.page.evaluate(LOAD_PICTURE, text)
            assert width > 100, file.stem
            assert text.startswith(f"# {title}\n")


def test_a_socket_that_a_choice_brings_along_has_its_tooltip(server: ComfyServer) -> None:
    with open_page(server) as comfy:
        comfy.load(workflow("two_rewards"), "two_rewards")
        place = comfy.page.evaluate(SOCKET, ["DNO_RewardLoader", "reward.prompt"])
        comfy.page.wait_for_timeout(300)
        comfy.page.mouse.move(place[0] - 1, place[1])
        comfy.page.mouse.move(*place)
        tip = comfy.page.locator(".node-tooltip", has_text="CONDITIONING cannot be read back")
        tip.wait_for(timeout=10_000)
        assert comfy.errors == []


def test_the_server_hands_out_the_texts(server: ComfyServer) -> None:
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    served = server.get("/i18n")["en"]["nodeDefs"]
    expected = json.loads(file.read_text(encoding="utf-8"))
    assert {name: served[name] for name in expected} == expected
