"""The panel's modules by themselves, in a browser without ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyui_dno.tests.harness import open_url

pytestmark = pytest.mark.browser
WEB = Path(__file__).resolve().parent.parent.parent / "web" / "dno"
ORIGIN = "http://panel.invalid"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page that can import the modules, which it gets straight from the checkout."""
    with open_url("about:blank") as blank:

        def answer(route: Any) -> None:
            file = WEB / route.request.url.rsplit("/", 1)[1]
            if file.suffix == ".js":
                body = file.read_text(encoding="utf-8")
                route.fulfill(body=body, content_type="text/javascript")
            else:
                route.fulfill(body="<!doctype html><title>panel</title>", content_type="text/html")

        blank.route(f"{ORIGIN}/**", answer)
        blank.goto(f"{ORIGIN}/")
        yield blank


def test_while_a_picture_is_on_its_way_only_the_newest_wish_counts(page: Any) -> None:
    asked = page.evaluate(
        """async () => {
          const { frameLoader } = await import('/frames.js')
          const asked = [], waiting = []
          const load = (index) => {
            asked.push(index)
            const picture = { width: 1, height: 1, close() {} }
            return new Promise((done) => waiting.push(() => done(picture)))
          }
          const arrive = async () => { waiting.shift()(); await new Promise((t) => setTimeout(t)) }
          const frames = frameLoader(load, () => {})
          for (const index of [1, 2, 3, 4]) frames.want([index])
          await arrive()
          await arrive()
          frames.want([4])
          return { asked, has: [1, 2, 3, 4].map((index) => !!frames.get(index)) }
        }"""
    )
    assert asked == {"asked": [1, 4], "has": [True, False, False, True]}


def test_a_picture_that_is_gone_is_not_asked_for_again_and_a_lost_answer_is(page: Any) -> None:
    asked = page.evaluate(
        """async () => {
          const { frameLoader } = await import('/frames.js')
          const asked = []
          const load = async (index) => {
            asked.push(index)
            throw Object.assign(new Error('no'), { gone: index === 1 })
          }
          const frames = frameLoader(load, () => {})
          for (const index of [1, 1, 2, 2]) {
            frames.want([index])
            await new Promise((t) => setTimeout(t))
          }
          return { asked, problems: [frames.problem(1), frames.problem(2) ?? null] }
        }"""
    )
    assert asked == {"asked": [1, 2, 2], "problems": ["no", None]}


def test_a_link_is_followed_through_reroutes_into_subgraphs_and_out_of_them(page: Any) -> None:
    found = page.evaluate(
        """async () => {
          const { nodeAt, nodesFrom } = await import('/graph_nodes.js')
          const graphOf = (nodes, links, more = {}) => {
            const graph = { nodes, ...more }
            graph.getNodeById = (id) => nodes.find((node) => node.id === id) ?? null
            graph.getLink = (id) => links[id]
            for (const node of nodes) node.graph = graph
            return graph
          }
          const out = (...links) => [{ name: 'trajectory', links }]
          const sampler = { id: 5, type: 'DNO_Sampler', outputs: out(1, 2) }
          const inner = graphOf(
            [sampler, { id: 6, type: 'Inside' }],
            { 1: { target_id: -20, target_slot: 0 }, 2: { target_id: 6, target_slot: 0 } }
          )
          const taking = graphOf([{ id: 9, type: 'Deep' }], { 7: { target_id: 9, target_slot: 0 } },
            { inputs: [{ linkIds: [7] }] })
          const root = graphOf(
            [
              { id: 12, subgraph: inner, outputs: out(3) },
              { id: 13, type: 'Reroute', outputs: out(4, 5) },
              { id: 14, type: 'Outside' },
              { id: 15, subgraph: taking }
            ],
            { 3: { target_id: 13, target_slot: 0 }, 4: { target_id: 14, target_slot: 0 },
              5: { target_id: 15, target_slot: 0 } },
            { subgraphs: new Map([['a', inner], ['b', taking]]) }
          )
          return {
            found: nodesFrom(sampler, 'trajectory', root).map((node) => node.type),
            at: ['12:5', '14', '12:99', '77:5'].map((path) => nodeAt(root, path)?.type ?? null)
          }
        }"""
    )
    assert sorted(found["found"]) == ["Deep", "Inside", "Outside"]
    assert found["at"] == ["DNO_Sampler", "Outside", None, None]


def test_steps_that_arrive_twice_or_late_stand_once_and_in_order(page: Any) -> None:
    session = page.evaluate(
        """async () => {
          const s = await import('/session.js')
          const session = s.newSession('a')
          const step = (index, best) => ({ index, quantile: [1], best, scores: [[index]] })
          for (const each of [step(2, [2]), step(0, [0]), step(1, [1]), step(2, [1])])
            s.applyStep(session, each)
          return { indices: session.steps.map((each) => each.index), best: session.best }
        }"""
    )
    assert session == {"indices": [0, 1, 2], "best": [1]}


def test_changes_hold_from_the_next_iteration_and_are_told_in_words(page: Any) -> None:
    told = page.evaluate(
        """async () => {
          const s = await import('/session.js')
          const session = s.newSession('a')
          const terms = [
            { name: 'colour', weight: 1, watch: false }, { name: 'judge', weight: 1, watch: true }
          ]
          s.applyState(session, { terms, learning_rate: 0.02, gamma: 1 })
          for (const index of [0, 1, 2, 3])
            s.applyStep(session, { index, quantile: [1], best: [0], scores: [[0], [0]] })
          s.applyChange(session, { after: 1, weights: [2, 0], node: '5' })
          s.applyChange(session, { after: 1, gamma: 0 })
          s.applyChange(session, { after: 2, stop: 'best' })
          s.applyChange(session, { after: 9, learning_rate: 1 })
          return { words: s.changesInWords(session), before: s.settingsAfter(session, 0).weights,
            after: s.settingsAfter(session, 1).weights }
        }"""
    )
    assert told == {
        "words": [{"after": 1, "text": "gamma 1 to 0, weight of colour 1 to 2"}],
        "before": [1, 0],
        "after": [2, 0],
    }


def test_an_answer_older_than_an_event_does_not_undo_it(page: Any) -> None:
    seen = page.evaluate(
        """async () => {
          const { sessionStore } = await import('/session_store.js')
          let answer
          const protocol = { loadSession: () => new Promise((done) => { answer = done }) }
          const store = sessionStore(protocol, () => {})
          const old = { session: 'a', node: '5', state: 'running', planned: 3 }
          store.handlers['dno.state'](old)
          store.handlers['dno.state']({ ...old, state: 'done', reason: 'all done' })
          const step = { index: 0, quantile: [1], best: [0], scores: [[0]] }
          answer({ ...old, steps: [step], changes: [] })
          await new Promise((t) => setTimeout(t))
          const [{ state, reason, steps }] = store.all()
          return { state, reason, steps: steps.length }
        }"""
    )
    assert seen == {"state": "done", "reason": "all done", "steps": 1}


def test_runs_that_a_restarted_server_does_not_know_are_told_as_failed(page: Any) -> None:
    seen = page.evaluate(
        """async () => {
          const { sessionStore } = await import('/session_store.js')
          const forever = () => new Promise(() => {})
          const protocol = { loadSession: forever, listSessions: async () => [] }
          const store = sessionStore(protocol, () => {})
          store.handlers['dno.state']({ session: 'a', node: '5', state: 'running' })
          store.handlers['dno.state']({ session: 'b', node: '5', state: 'done', reason: '' })
          await store.restore()
          return store.all().map(({ state, reason }) => [state, reason])
        }"""
    )
    assert seen == [["failed", "The server was restarted."], ["done", ""]]


@pytest.mark.parametrize(
    ("count", "aspect", "room", "columns"),
    [
        (1, 1.0, (300, 220), 1),
        (4, 1.0, (400, 300), 2),
        (4, 0.5, (800, 300), 4),
        (2, 2.0, (300, 300), 1),
    ],
)
def test_pictures_of_a_batch_are_laid_out_as_large_as_they_fit(
    page: Any, count: int, aspect: float, room: tuple[int, int], columns: int
) -> None:
    cell = page.evaluate(
        "async ([n, a, [w, h]]) => (await import('/compare.js')).fit(n, a, w, h)",
        [count, aspect, list(room)],
    )
    rows = -(-count // columns)
    assert cell["columns"] == columns
    assert cell["width"] == pytest.approx(aspect * cell["height"])
    assert columns * cell["width"] <= room[0] and rows * cell["height"] <= room[1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.42 s"), (3.21, "3.2 s"), (63, "63 s"), (252, "4 min 12 s"), (7500, "2 h 5 min")],
)
def test_times_are_told_in_words(page: Any, seconds: float, words: str) -> None:
    said = page.evaluate("async (s) => (await import('/format.js')).duration(s)", seconds)
    assert said == words
