"""The live panel in a real browser: watch, change, pause, stop, come back, scrub."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno.tests.e2e.panel_page import PanelPage, expect, open_panel_page
from comfyui_dno.tests.harness import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
BOTH = pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas nodes", "DOM nodes"])
LONG = 400
"""Iterations of a run that the test itself ends."""

IN_SUBGRAPH = "() => { window.app.graph.convertToSubgraph(new Set([dno.named('DNO_Sampler')[0]])) }"

FRAME = """async (path) => {
  const answer = await window.app.api.fetchApi(path)
  const bitmap = await createImageBitmap(await answer.blob())
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext('2d')
  pen.drawImage(bitmap, 0, 0)
  return dno.colour(pen)
}"""

SECOND_SAMPLER = """(seed) => {
  const { graph } = window.app, [first] = dno.named('DNO_Sampler')
  const second = window.LiteGraph.createNode('DNO_Sampler')
  graph.add(second)
  second.pos = [first.pos[0] + 900, first.pos[1]]
  for (const { name, value, serialize } of first.widgets)
    if (serialize !== false) dno.set(second, name, value)
  dno.set(second, 'seed', seed)
  first.inputs.forEach((input, slot) => {
    const link = input.link == null ? null : graph.getLink(input.link)
    if (link) graph.getNodeById(link.origin_id).connect(link.origin_slot, second, slot)
  })
  const preview = window.LiteGraph.createNode('PreviewImage')
  graph.add(preview)
  second.connect(1, preview, 0)
  dno.mark()
}"""


@BOTH
def test_a_template_is_opened_from_the_templates_dialog_and_carries_a_panel(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_panel_page(server, vue_nodes) as page:
        browse = "window.app.extensionManager.command.execute('Comfy.BrowseTemplates')"
        page.page.evaluate(f"() => {{ {browse} }}")
        page.page.get_by_role("dialog").get_by_text("direct-noise-optimization").first.click()
        page.page.get_by_test_id("template-workflow-first_light").click()
        page.page.wait_for_function(
            "() => window.app.graph.nodes.some((node) => node.type === 'DNO_Sampler')"
        )
        expect(page.page.locator(".dno-panel")).to_have_count(1)


@BOTH
def test_a_run_is_watched_changed_paused_resumed_and_stopped(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_panel_page(server, vue_nodes) as page:
        page.load("first_light", iterations=LONG)
        saved = widget_values(page)
        panel = page.panel()
        assert panel.inner_text().strip() == "Picture, curves and controls appear here."
        page.queue()
        page.wait_state("running")
        page.bring()
        page.wait_iteration(2)
        page.page.wait_for_function(
            "() => dno.panel(0).querySelector('canvas.dno-right').width > 200"
        )
        picture = page.page.evaluate("() => `${dno.picture(0, 'right')}`")
        curve = page.curve()
        page.wait_iteration(5)
        page.page.wait_for_function(
            "(old) => dno.panel(0).querySelector('path.dno-colour-0').getAttribute('d') !== old",
            arg=curve,
        )
        assert len(page.curve()) > len(curve)
        page.page.wait_for_function("(old) => `${dno.picture(0, 'right')}` !== old", arg=picture)

        refusal = {"error": "Not this one. Try another."}
        page.page.route("**/control", lambda r: r.fulfill(status=400, json=refusal), times=1)
        gamma = panel.get_by_label("Regularizer strength gamma, number")
        gamma.fill("3")
        gamma.press("Enter")
        expect(panel.get_by_text("Not this one. Try another.")).to_be_visible()
        expect(gamma).to_have_value("1")

        weight = panel.get_by_label("Weight of colour #2f6fd0, number")
        weight.fill("1.5")
        weight.press("Enter")
        changed = page.wait_event("dno.changed")
        assert changed["weights"] == [1.5]
        page.wait_iteration(changed["after"] + 1)
        for step in page.events("dno.step"):
            expected = 1.5 if step["index"] > changed["after"] else 1.0
            assert step["settings"]["weights"] == [expected]
        expect(panel.locator(".dno-mark")).to_have_count(2)  # one on either plot
        mark = panel.locator(".dno-mark title").first
        words = f"From iteration {changed['after'] + 1}: weight of colour #2f6fd0 1 to 1.5"
        assert mark.text_content() == words

        panel.get_by_role("button", name="Pause").press("Enter")
        page.wait_state("paused")
        heard = len(page.events("dno.step"))
        panel.get_by_label("Learning rate", exact=True).press("ArrowRight")
        assert page.wait_event("dno.changed", 2)["learning_rate"] > 0.02
        page.page.wait_for_timeout(1500)
        assert len(page.events("dno.step")) == heard
        panel.get_by_role("button", name="Resume").click()
        page.wait_event("dno.step", heard + 2)
        assert page.events("dno.step")[-1]["settings"]["learning_rate"] > 0.02

        panel.get_by_role("button", name="Stop, keep best").click()
        page.wait_state("done")
        page.wait_event("execution_success")
        assert not panel.get_by_role("button", name="Pause").is_visible()
        assert widget_values(page) == saved


@BOTH
def test_a_reloaded_page_finds_the_running_session_again(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_panel_page(server, vue_nodes) as page:
        page.load("first_light", iterations=LONG)
        page.queue()
        page.wait_state("running")
        page.wait_iteration(3)
        session = page.events("dno.step")[0]["session"]
        page.page.reload()
        page.comfy.wait_until_ready()
        page.page.wait_for_selector(".dno-panel", state="attached")
        page.prepare()
        page.wait_state("running")
        assert page.panel().get_attribute("data-session") == session
        assert page.panel().locator(".dno-scrub input").get_attribute("min") == "0"
        assert page.curve().count("L") >= 3
        page.wait_iteration(5)
        page.bring()
        page.panel().get_by_role("button", name="Stop, keep current").click()
        page.wait_state("done")
        assert "current" in page.panel().locator(".dno-state").inner_text()


@BOTH
def test_scrubbing_after_the_run_sets_pick_iteration_and_queues_nothing(
    server: ComfyServer, vue_nodes: bool
) -> None:
    with open_panel_page(server, vue_nodes) as page:
        page.load("two_rewards", iterations=4)
        if not vue_nodes:
            page.page.evaluate(IN_SUBGRAPH)
        page.queue()
        page.wait_event("execution_success")
        if not vue_nodes:
            assert ":" in page.events("dno.step")[0]["node"]
            page.page.evaluate(
                "() => window.app.canvas.openSubgraph(dno.nodes().find((n) => n.subgraph).subgraph)"
            )
            page.page.evaluate("() => dno.mark()")
        page.wait_state("done")
        page.bring()
        posted: list[str] = []
        page.page.on("request", lambda r: posted.append(r.url) if r.method == "POST" else None)
        slider = page.panel().get_by_label("Iteration", exact=True)
        slider.press("ArrowLeft")
        slider.press("ArrowLeft")
        assert picked(page) == 2
        panel = page.panel()
        right = panel.get_by_label("Picture on the right").locator("option:checked")
        expect(right).to_have_text("Iteration 2")
        session = panel.get_attribute("data-session")
        frame = page.page.evaluate(FRAME, f"/dno/sessions/{session}/frames/2")
        page.wait_picture(frame)
        line = panel.get_by_role("slider", name="Compare: how much of the left picture is shown")
        line.press("Home")
        line.press("ArrowRight")
        expect(line).to_have_attribute("aria-valuenow", "5")
        drag(page, panel.locator(".dno-slot"), 0.5, 0.8)
        expect(line).to_have_attribute("aria-valuenow", "80")
        drag(page, panel.locator(".dno-plot").first, 0.9, 0.02)
        assert picked(page) == 0
        panel.get_by_role("button", name="Best").click()
        assert picked(page) == -1
        expect(slider).not_to_have_value("0")
        slider.press("Home")
        assert picked(page) == 0
        expect(right).to_have_text("Iteration 0")
        assert page.picture("left") == page.picture("right") != pytest.approx(frame, abs=0.01)
        assert not [url for url in posted if url.rstrip("/").endswith("/prompt")]
        assert len(page.events("execution_start")) == 1


def test_a_cancelled_run_and_a_failed_node_leave_a_panel_that_works(server: ComfyServer) -> None:
    with open_panel_page(server, vue_nodes=False) as page:
        page.load("first_light", iterations=LONG)
        page.queue()
        page.wait_state("running")
        page.wait_iteration(1)
        page.page.evaluate("() => window.app.api.interrupt()")
        page.wait_state("cancelled")
        assert not page.panel().get_by_role("button", name="Pause").is_visible()
        assert page.panel().locator(".dno-settings input").first.is_disabled()
        advanced = "() => window.LiteGraph.createNode('DNO_SamplerAdvanced').widgets.at(-1).name"
        assert page.page.evaluate(advanced) == "dno_panel"
        page.set(changes="no changes at all")
        page.queue()
        page.wait_event("execution_error")
        assert page.panel().get_attribute("data-state") == "cancelled"
        page.set(changes="", iterations=2)
        page.queue()
        page.wait_state("done")
        assert page.panel().get_attribute("data-session") == page.events("dno.step")[-1]["session"]


def test_a_run_is_not_shown_on_another_workflow_whose_node_has_the_same_number(
    server: ComfyServer,
) -> None:
    with open_panel_page(server, vue_nodes=False) as page:
        page.load("first_light", iterations=LONG)
        page.queue()
        page.wait_iteration(1)
        page.load("two_rewards")
        node, session = page.wait_event("dno.step")["node"], page.events("dno.step")[0]["session"]
        assert page.page.evaluate("() => String(dno.named('DNO_Sampler')[0].id)") == node
        assert page.panel().get_attribute("data-state") == "idle"
        page.load("first_light")
        page.wait_state("running")
        assert page.panel().get_attribute("data-session") == session
        page.page.evaluate("() => window.app.api.interrupt()")
        page.wait_state("cancelled")


def test_two_samplers_do_not_mix_and_a_removed_one_stops_asking(server: ComfyServer) -> None:
    with open_panel_page(server, vue_nodes=True) as page:
        page.load("first_light", iterations=LONG)
        page.page.evaluate(SECOND_SAMPLER, 1)
        nodes = page.page.evaluate("() => dno.named('DNO_Sampler').map((n) => String(n.id))")
        page.queue()
        earlier = nodes.index(page.wait_event("dno.step")["node"])  # ComfyUI chooses which
        later = 1 - earlier
        page.wait_state("running", earlier)
        assert page.panel(later).get_attribute("data-state") == "idle"
        page.bring(earlier)
        page.panel(earlier).get_by_role("button", name="Stop, keep best").click()
        page.wait_state("done", earlier)
        page.wait_state("running", later)
        sessions = {step["node"]: step["session"] for step in page.events("dno.step")}
        shown = [page.panel(k).get_attribute("data-session") for k in (0, 1)]
        assert shown == [sessions[node] for node in nodes] and shown[0] != shown[1]

        frames: list[str] = []
        page.page.evaluate("(k) => window.app.graph.remove(dno.named('DNO_Sampler')[k])", later)
        page.panel(later).wait_for(state="detached")
        page.page.on("request", lambda r: frames.append(r.url) if "/frames/" in r.url else None)
        heard = len(page.events("dno.step"))
        page.wait_event("dno.step", heard + 3)
        assert frames == []
        assert page.panel(earlier).get_attribute("data-session") == shown[earlier]
        page.page.evaluate("() => window.app.api.interrupt()")
        page.wait_event("execution_interrupted")


def drag(page: PanelPage, locator: Any, start: float, end: float) -> None:
    """Drag across an element with the mouse, between two shares of its width; its node stays."""
    box, mouse = locator.bounding_box(), page.page.mouse
    y = box["y"] + box["height"] / 2
    mouse.move(box["x"] + start * box["width"], y)
    mouse.down()
    mouse.move(box["x"] + end * box["width"], y, steps=4)
    mouse.up()
    assert locator.bounding_box() == box


def widget_values(page: PanelPage) -> list[Any]:
    """The sampler's values as the workflow file would hold them."""
    nodes = page.comfy.serialize()["nodes"]
    return list(next(node for node in nodes if node["type"] == "DNO_Sampler")["widgets_values"])


def picked(page: PanelPage) -> int:
    return int(
        page.page.evaluate("() => dno.widget(dno.named('DNO_PickIteration')[0], 'index').value")
    )
