"""The live panel in a browser: find it, bring it into view, read it, and wait for its run."""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

from comfyui_dno.tests.e2e.conftest import WORKFLOWS
from comfyui_dno.tests.harness import ComfyPage, ComfyServer, open_page

SIZE = (1600, 1100)
SEEDS = itertools.count(7000)
"""No two runs are the same, so that the server never answers from its cache."""

PREPARE = """() => {
  const events = window.dno?.events ?? []
  const listens = !!window.dno
  window.dno = { events }
  if (!listens) for (const name of ['dno.state', 'dno.step', 'dno.changed', 'execution_start',
    'execution_success', 'execution_error', 'execution_interrupted'])
    window.app.api.addEventListener(name, (e) => events.push({ ...e.detail, event: name }))
  dno.nodes = (graph = window.app.graph) => graph._nodes.flatMap(
    (n) => n.subgraph ? [n, ...dno.nodes(n.subgraph)] : [n])
  dno.named = (type) => dno.nodes().filter((n) => n.type === type)
  dno.widget = (node, name) => node.widgets.find((w) => w.name === name)
  dno.set = (node, name, value) => {
    const widget = dno.widget(node, name)
    widget.value = value
    widget.callback?.(value, window.app.canvas, node)
  }
  dno.colour = (pen) => {
    const { data } = pen.getImageData(0, 0, pen.canvas.width, pen.canvas.height)
    return [0, 1, 2].map((k) => {
      let sum = 0
      for (let i = k; i < data.length; i += 4) sum += data[i]
      return (4 * sum) / data.length
    })
  }
  dno.picture = (k, side) =>
    dno.colour(dno.panel(k).querySelector(`canvas.dno-${side}`).getContext('2d'))
  dno.panel = (k) => dno.widget(dno.named('DNO_Sampler')[k], 'dno_panel').element
  dno.mark = () => dno.named('DNO_Sampler').forEach((n, k) => {
    dno.panel(k).dataset.place = k
  })
  dno.mark()
}"""
BRING = """(k) => {
  const { canvas } = window.app, box = dno.panel(k).getBoundingClientRect()
  const by = canvas.ds.scale
  canvas.ds.offset[0] += (300 - box.left) / by
  canvas.ds.offset[1] += (130 - box.top) / by
  canvas.setDirty(true, true)
}"""


class PanelPage:
    """ComfyUI's page with a workflow whose samplers carry panels; `place` counts the samplers."""

    def __init__(self, comfy: ComfyPage) -> None:
        self.comfy = comfy
        self.page = comfy.page

    def load(self, name: str, **widgets: Any) -> None:
        """Open a shipped workflow with short steps, a new seed and these sampler widgets.

        It has an id, as it would once the artist has saved it.
        """
        graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        self.comfy.load(graph, name)
        self.prepare()
        self.set(steps=3, seed=next(SEEDS), **widgets)

    def prepare(self) -> None:
        """Listen to events, and number the panels, on a page with a workflow."""
        self.page.evaluate(PREPARE)

    def set(self, place: int = 0, **widgets: Any) -> None:
        """Set widgets of a sampler, as if they had been typed in."""
        self.page.evaluate(
            "([k, values]) => { const node = dno.named('DNO_Sampler')[k];"
            " for (const [name, value] of Object.entries(values)) dno.set(node, name, value) }",
            [place, widgets],
        )

    def queue(self) -> None:
        self.page.click("[data-testid=queue-button]")

    def panel(self, place: int = 0) -> Any:
        return self.page.locator(f'.dno-panel[data-place="{place}"]')

    def bring(self, place: int = 0) -> None:
        """Move the graph so that the panel lies in view and holds still."""
        self.page.evaluate(BRING, place)
        self.page.wait_for_function(
            "(k) => { const box = dno.panel(k).getBoundingClientRect();"
            " return Math.abs(box.left - 300) < 3 && Math.abs(box.top - 130) < 3 }",
            arg=place,
        )

    def wait_state(self, state: str, place: int = 0, timeout: float = 120.0) -> None:
        self.page.wait_for_selector(
            f'.dno-panel[data-place="{place}"][data-state="{state}"]:not([data-empty])',
            state="attached",
            timeout=timeout * 1000,
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        return list(
            self.page.evaluate("(name) => dno.events.filter((e) => e.event === name)", name)
        )

    def wait_event(self, name: str, count: int = 1, timeout: float = 120.0) -> dict[str, Any]:
        """The count-th event of that name."""
        self.page.wait_for_function(
            "([name, n]) => dno.events.filter((e) => e.event === name).length >= n",
            arg=[name, count],
            timeout=timeout * 1000,
        )
        return self.events(name)[count - 1]

    def wait_iteration(self, index: int, timeout: float = 120.0) -> None:
        """Until the panel's page has heard of that iteration."""
        self.page.wait_for_function(
            "(i) => dno.events.some((e) => e.event === 'dno.step' && e.index >= i)",
            arg=index,
            timeout=timeout * 1000,
        )

    def picture(self, side: str = "right", place: int = 0) -> list[float]:
        """Mean red, green and blue of the first picture on that side, 0 to 255."""
        return list(self.page.evaluate("([k, side]) => dno.picture(k, side)", [place, side]))

    def wait_picture(self, colour: list[float], timeout: float = 60.0) -> None:
        """Until the right picture's mean red, green and blue are these."""
        self.page.wait_for_function(
            "(colour) => dno.picture(0, 'right').every((c, k) => Math.abs(c - colour[k]) < 0.01)",
            arg=colour,
            timeout=timeout * 1000,
        )

    def curve(self, place: int = 0) -> str:
        """The path of the first term's curve."""
        return str(
            self.panel(place).evaluate(
                "(p) => p.querySelector('path.dno-colour-0').getAttribute('d')"
            )
        )


def expect(locator: Any) -> Any:
    """playwright's assertions, which wait until they hold."""
    from playwright.sync_api import expect as assertions

    return assertions(locator)


@contextlib.contextmanager
def open_panel_page(server: ComfyServer, vue_nodes: bool) -> Iterator[PanelPage]:
    """The server's page, ready to load a workflow; complaints of the page fail the test."""
    with open_page(server, vue_nodes, SIZE) as comfy:
        yield PanelPage(comfy)
        assert comfy.errors == []
