"""Cancelling: at once, at any moment, and without a trace."""

from __future__ import annotations

import io
import random
import time
from typing import Any

import psutil
import pytest
from PIL import Image

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure

MEGABYTE = 2**20


def seeded(workflow: dict[str, Any], seed: int, iterations: int) -> dict[str, Any]:
    changed = with_inputs(workflow, "KSampler", seed=seed)
    return with_inputs(changed, SAMPLER, seed=seed, iterations=iterations)


def pictures(server: ComfyServer, workflow: dict[str, Any]) -> dict[str, bytes]:
    """The pixels of every saved picture by its file prefix; the reward curve is left out."""
    entry = server.run(workflow)
    assert failure(entry) is None
    found = {}
    for node, data in workflow.items():
        prefix = data["inputs"].get("filename_prefix", "")
        if data["class_type"] == "SaveImage" and not prefix.endswith("curve"):
            reference = entry["outputs"][node]["images"][0]
            with Image.open(io.BytesIO(server.image(reference))) as image:
                found[prefix] = image.convert("RGB").tobytes()
    return found


def wait_until_idle(server: ComfyServer, timeout: float = 60.0) -> float:
    """Seconds until the queue is empty."""
    started = time.monotonic()
    while not server.is_idle():
        assert time.monotonic() - started < timeout, "the run goes on after its cancel"
        time.sleep(0.01)
    return time.monotonic() - started


def memory(server: ComfyServer) -> float:
    assert server.process is not None
    return psutil.Process(server.process.pid).memory_info().rss / MEGABYTE


@pytest.mark.slow
def test_cancels_at_random_moments_leave_the_server_as_it_was(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    expected = pictures(server, seeded(quick, 1, 2))
    pictures(server, seeded(quick, 2, 2))
    before = memory(server)
    moments = random.Random(7)
    ended = []
    for attempt in range(10):
        prompt = server.prompt(seeded(quick, 1000 + attempt, 40))
        time.sleep(moments.uniform(0.0, 3.0))
        server.interrupt()
        wait_until_idle(server)
        entry = server.wait(prompt, timeout=10)
        ended.append(failure(entry))
    assert set(ended) <= {"interrupted", None}
    assert ended.count("interrupted") >= 8
    again = seeded(quick, 1, 2)
    again[node_of(again, SAMPLER)]["inputs"]["time_limit"] = 500.0  # another key for the cache
    assert pictures(server, again) == expected
    assert memory(server) < before + 150


@pytest.mark.slow
def test_a_cancel_acts_within_a_denoising_step(server: ComfyServer, quick: dict[str, Any]) -> None:
    prompt = server.prompt(seeded(quick, 5000, 200))
    events = server.events()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until the sampler is at work
        event = events.receive(1.0)
        states = event["data"]["nodes"] if event and event["type"] == "progress_state" else {}
        state = states.get(node_of(quick, SAMPLER))
        if state and state["value"] > 0:
            break
    events.close()
    server.interrupt()
    assert wait_until_idle(server) < 3.0
    assert failure(server.wait(prompt)) == "interrupted"
