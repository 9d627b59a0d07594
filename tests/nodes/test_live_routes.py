"""The routes of the panel, asked over HTTP: what they give, and what they refuse and why."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_dno.dno_core import Settings, TermInfo
from comfyui_dno.tests.nodes.synthetic_run import BRIGHTNESS, WATCHED, synthetic_run

TERMS = (
    TermInfo("brightness", "mean", 1.0, "maximize", 0.0, 1.0, False),
    TermInfo("judge", "cosine", 0.1, "maximize", 0.0, 1.0, True),
)
SETTINGS = Settings(0.03, 1.0, (1.0, 0.0), 1.0)


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def session(comfy: Any, events: list[tuple[str, dict[str, Any]]]) -> Any:
    """A session of three iterations with pictures, as a run would have told it."""
    from comfyui_dno.nodes.live import sessions
    from comfyui_dno.nodes.live.session import Session

    run = synthetic_run((BRIGHTNESS, WATCHED), count=3)
    made = Session("7", "prompt-1", "page-1", run.terms, 10, SETTINGS, lambda *e: events.append(e))
    made.begin(run.images)
    made.keep_alive = run  # as ComfyUI's cache of outputs does
    for record in run.records:
        made.step(record, [0], seconds_left=4.0, memory=(1, 2))
    sessions.add(made)
    return made


Client = Callable[[Any], Awaitable[Any]]


def ask(work: Client) -> Any:
    """Do `work` with a client of a server that has only these routes."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    from comfyui_dno.nodes.live import routes

    async def main() -> Any:
        table, app = web.RouteTableDef(), web.Application()
        routes.register(table)
        app.add_routes(table)
        async with TestClient(TestServer(app, host="127.0.0.1")) as client:
            return await work(client)

    return asyncio.run(main())


def get(path: str) -> tuple[int, Any]:
    async def work(client: Any) -> tuple[int, Any]:
        answer = await client.get(path)
        is_json = answer.content_type == "application/json"
        return answer.status, await (answer.json() if is_json else answer.read())

    return ask(work)


def post(path: str, body: Any, **options: Any) -> tuple[int, Any]:
    async def work(client: Any) -> tuple[int, Any]:
        sent = {"json": body} if not isinstance(body, (bytes, str)) else {"data": body}
        answer = await client.post(path, **sent, **options)
        return answer.status, await answer.json()

    return ask(work)


def test_a_page_finds_the_runs_of_its_own_client(session: Any) -> None:
    status, found = get("/dno/sessions?client=page-1")
    assert status == 200
    assert found["sessions"][-1] == {
        "session": session.id,
        "node": "7",
        "prompt_id": "prompt-1",
        "state": "running",
        "planned": 10,
        "index": session.index,
    }
    assert get("/dno/sessions?client=page-2") == (200, {"sessions": []})
    assert get("/dno/sessions") == (200, {"sessions": []})


def test_everything_told_so_far_can_be_read_again(
    session: Any, events: list[tuple[str, dict[str, Any]]]
) -> None:
    _, found = get(f"/dno/sessions/{session.id}")
    told = [data for name, data in events if name == "dno.step"]
    assert [step["index"] for step in found["steps"]] == [step["index"] for step in told]
    assert {**found["steps"][-1], "session": session.id}.items() <= told[-1].items()
    assert found["terms"][0]["name"] == session._terms[0].name
    json.loads(json.dumps(found, allow_nan=False))


def test_a_picture_is_the_one_that_was_scored(session: Any) -> None:
    status, data = get(f"/dno/sessions/{session.id}/frames/1")
    assert status == 200
    shown = Image.open(io.BytesIO(data))
    expected = session.keep_alive.images[1]
    side = expected.shape[1]
    small = np.asarray(shown.resize((shown.width * side // shown.height, side)), np.float32)
    joined = torch.cat(list(expected), dim=1).float().numpy()
    assert small.shape == joined.shape
    assert np.abs(small - joined).mean() < 24  # a JPEG of a synthetic picture


@pytest.mark.parametrize(
    ("index", "status"), [("99", 404), ("-1", 400), ("x", 400), ("1e3", 400), ("9" * 12, 400)]
)
def test_a_picture_that_is_not_there_is_said(session: Any, index: str, status: int) -> None:
    found, answer = get(f"/dno/sessions/{session.id}/frames/{index}")
    assert found == status and "error" in answer


def test_pictures_go_with_the_run_they_belong_to(session: Any) -> None:
    session.keep_alive = None
    status, answer = get(f"/dno/sessions/{session.id}/frames/1")
    assert status == 404 and "Run the node again" in answer["error"]


def test_a_change_is_accepted_told_and_kept(
    session: Any, events: list[tuple[str, dict[str, Any]]]
) -> None:
    status, answer = post(
        f"/dno/sessions/{session.id}/control", {"learning_rate": 0.01, "pause": True}
    )
    assert status == 200
    assert answer == {
        "session": session.id,
        "after": session.index,
        "learning_rate": 0.01,
        "pause": True,
    }
    assert [change.learning_rate for change in session.changes] == [0.01]
    name, data = events[-1]
    assert name == "dno.changed" and data["after"] == session.index


def test_a_change_is_recorded_where_it_takes_effect(session: Any) -> None:
    run = synthetic_run((BRIGHTNESS, WATCHED), count=4)
    session.changes_for(3)  # iteration 3 has begun, with what was there
    assert session.control({"learning_rate": 0.1})["after"] == 3
    assert session.control({"stop": "current"})["after"] == 2
    session.step(run.records[3], [0])  # it came in all the same
    assert [(each.after, each.stop) for each in session.settle()] == [(3, "current"), (3, None)]
    status, answer = post(f"/dno/sessions/{session.id}/control", {"stop": "best"})
    assert status == 409 and "has ended" in answer["error"]


def test_changes_hold_in_the_order_in_which_they_are_read_again(comfy: Any) -> None:
    from comfyui_dno.nodes.live.changes import Change, read_changes, write_changes
    from comfyui_dno.nodes.live.session import Session

    given = [Change(8, learning_rate=0.2)]
    made = Session("1", None, None, TERMS, 10, SETTINGS, lambda *_: None, given)
    made.control({"learning_rate": 0.1})
    assert [each.learning_rate for each in made.changes] == [0.1, 0.2]
    assert read_changes(write_changes(made.changes), TERMS) == made.changes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ("7", 415),
        ({"pause": 1}, 400),
        ({"pause": "yes"}, 400),
        ({"stop": True}, 400),
        ({"learning_rate": -1}, 400),
        ({"gamma": None}, 400),
        ({"weights": "1,1"}, 400),
        ({"path": "/etc/passwd"}, 400),
        ({"learning_rate": 0.01, "node": "7"}, 400),
    ],
)
def test_wrong_bodies_are_refused_and_change_nothing(session: Any, body: Any, status: int) -> None:
    found, answer = post(f"/dno/sessions/{session.id}/control", body)
    assert found == status and answer["error"]
    assert session.changes == () and session.stop() is None and not session._paused


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b'{"pause": true', JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b"[" * 10_000, JSON, 400),
        (b'{"gamma": NaN}', JSON, 400),
        (b'{"pause": true}', {"Content-Type": "text/plain"}, 415),
        (b'{"pause": true}', {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b" " * 20_000, JSON, 413),
        (b" " * 5_000_000, JSON, 413),
    ],
)
def test_bodies_that_are_no_small_json_are_refused(
    session: Any, data: bytes, headers: dict[str, str], status: int
) -> None:
    found, answer = post(f"/dno/sessions/{session.id}/control", data, headers=headers)
    assert found == status and answer["error"]
    assert not session._paused


def test_unknown_and_ended_runs_are_refused(session: Any) -> None:
    assert get("/dno/sessions/none")[0] == 404
    assert post("/dno/sessions/none/control", {"pause": True})[0] == 404
    session.close("done", "reached")
    status, answer = post(f"/dno/sessions/{session.id}/control", {"pause": True})
    assert status == 409 and "has ended" in answer["error"]
    assert get(f"/dno/sessions/{session.id}")[1]["state"] == "done"


def test_only_the_last_ended_runs_are_kept_and_all_that_go_on(comfy: Any) -> None:
    from comfyui_dno.nodes.live import sessions
    from comfyui_dno.nodes.live.session import Session

    def make() -> Any:
        made = Session("1", None, "many", TERMS, 1, SETTINGS, lambda *_: None)
        sessions.add(made)
        return made

    running = make()
    for _ in range(20):
        make().close("done")
    make()
    kept = sessions.of_client("many")
    assert running in kept and len(kept) == sessions.ENDED_KEPT + 2
    running.close("done")


def test_a_page_announces_that_it_shows_panels(comfy: Any) -> None:
    from comfyui_dno.nodes.live import sessions

    assert not sessions.has_panel("page-9") and not sessions.has_panel(None)
    assert post("/dno/panel", {"client": "page-9"}) == (200, {"client": "page-9"})
    assert sessions.has_panel("page-9")
    for body in ({}, {"client": 7}, {"client": ""}, {"client": "x" * 65}, {"client": "a", "b": 1}):
        assert post("/dno/panel", body)[0] == 400
