"""The panel's protocol against a real server: watch, change, stop, and repeat from the picture."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure


def get(server: ComfyServer, path: str) -> Any:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=30) as answer:
        return json.loads(answer.read())


def post(server: ComfyServer, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"{server.url}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def running(server: ComfyServer, prompt_id: str, until: Callable[[Any], bool]) -> Any:
    """The session of that prompt, once `until` holds of it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = get(server, f"/dno/sessions?client={server.client_id}")["sessions"]
        mine = [each for each in found if each["prompt_id"] == prompt_id]
        if mine and until(mine[-1]):
            return mine[-1]
        time.sleep(0.05)
    raise AssertionError("the run did not get there")


def saving(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with one more node, which saves the sampler's picture."""
    inputs = {"images": [node_of(workflow, SAMPLER), 1], "filename_prefix": "live"}
    return {**workflow, "saved": {"class_type": "SaveImage", "inputs": inputs}}


def saved(server: ComfyServer, entry: dict[str, Any]) -> Image.Image:
    picture = Image.open(io.BytesIO(server.image(entry["outputs"]["saved"]["images"][0])))
    picture.load()
    return picture


@pytest.mark.slow
def test_a_run_changed_and_stopped_by_hand_is_repeated_from_its_saved_picture(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    workflow = saving(with_inputs(quick, SAMPLER, iterations=200, seed=21))
    prompt_id = server.prompt(workflow)
    name = running(server, prompt_id, lambda each: each["index"] >= 1)["session"]
    status, said = post(server, f"/dno/sessions/{name}/control", {"learning_rate": 0.1})
    assert status == 200
    after = json.loads(said)["after"]
    running(server, prompt_id, lambda each: each["index"] >= after + 2)
    assert post(server, f"/dno/sessions/{name}/control", {"stop": "current"})[0] == 200
    entry = server.wait(prompt_id, 60)
    assert failure(entry) is None
    whole = get(server, f"/dno/sessions/{name}")
    rates = {step["index"]: step["settings"]["learning_rate"] for step in whole["steps"]}
    assert rates[after] != 0.1 and all(rates[i] == 0.1 for i in rates if i > after)
    assert whole["state"] == "done" and "keeping the current" in whole["reason"]

    picture = saved(server, entry)
    kept = json.loads(picture.info["prompt"])
    assert kept[node_of(kept, SAMPLER)]["inputs"]["changes"]
    again = server.run(with_inputs(kept, SAMPLER, memory_mb=600), timeout=120)
    assert failure(again) is None
    assert saved(server, again).tobytes() == picture.tobytes()


@pytest.mark.slow
def test_foreign_origins_and_unknown_runs_are_refused(server: ComfyServer) -> None:
    body = {"client": "page"}
    assert post(server, "/dno/panel", body)[0] == 200
    assert post(server, "/api/dno/panel", body)[0] == 200
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert post(server, "/dno/panel", body, **evil)[0] == 403
    assert post(server, "/dno/sessions/nothing/control", {"pause": True}, **evil)[0] == 403
    assert post(server, "/dno/sessions/nothing/control", {"pause": True})[0] == 404


@pytest.mark.slow
def test_two_samplers_in_one_graph_are_two_runs(server: ComfyServer, quick: dict[str, Any]) -> None:
    first = node_of(quick, SAMPLER)
    second = {**quick[first], "inputs": {**quick[first]["inputs"], "seed": 99}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["second", 1]}}
    workflow = {**quick, "second": second, "shown": shown}
    prompt_id = server.prompt(workflow)
    assert failure(server.wait(prompt_id, 120)) is None
    found = get(server, f"/dno/sessions?client={server.client_id}")["sessions"]
    mine = [each for each in found if each["prompt_id"] == prompt_id]
    assert {each["node"] for each in mine} == {first, "second"}
    runs = [get(server, f"/dno/sessions/{each['session']}") for each in mine]
    assert [len(run["steps"]) for run in runs] == [3, 3]
    assert runs[0]["steps"][0]["scores"] != runs[1]["steps"][0]["scores"]
