"""A run that is changed, paused and stopped by hand, and its repetition."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import PermutationRegularizer

from .runs import request, wavy_reward
from .sabotage import Calls, interrupt

Hand = Callable[[str, dict[str, Any], Any], None]
"""What the page does on an event: its name, its data, its session."""


class Page:
    """ComfyUI's server with one open page, which acts on events as an artist would."""

    client_id = "page-1"
    last_prompt_id = "prompt-1"

    def __init__(self, hand: Hand) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._hand = hand

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        from comfyui_dno.nodes.live import sessions

        assert sid == self.client_id
        self.events.append((event, data))
        self._hand(event, data, sessions.get(data["session"]))

    def states(self) -> list[str]:
        return [data["state"] for name, data in self.events if name == "dno.state"]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hand], Page]:
    def opened(hand: Hand = lambda *_: None) -> Page:
        from comfyui_dno.nodes.live import start

        page = Page(hand)
        monkeypatch.setattr(start, "prompt_server", lambda: page)
        return page

    return opened


def asked(**changes: Any) -> Any:
    values = {"iterations": 6, "regularizer": PermutationRegularizer(), "node_id": "3"}
    return request(terms=(wavy_reward(),), **{**values, **changes})


def at(index: int, **control: Any) -> Hand:
    """Ask for `control` once that iteration is there."""

    def hand(event: str, data: dict[str, Any], session: Any) -> None:
        if event == "dno.step" and data["index"] == index:
            session.control(control)

    return hand


def run(what: Any) -> Any:
    from comfyui_dno.nodes import optimization

    return optimization.run(what).trajectory


def same_run(one: Any, other: Any) -> bool:
    scores = [[record.scores for record in each.records] for each in (one, other)]
    pictures = [torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True)]
    return scores[0] == scores[1] and all(pictures) and one.best == other.best


@pytest.mark.parametrize(
    "control", [{"learning_rate": 0.1}, {"gamma": 9.0}, {"weights": [3.0]}], ids=str
)
def test_a_change_holds_from_the_next_iteration_and_can_be_repeated(
    open_page: Any, control: dict[str, Any]
) -> None:
    (name,) = control
    plain = run(asked())
    page = open_page(at(2, **control))
    changed = run(asked())
    held = [getattr(record.settings, name) for record in changed.records]
    assert len(set(held[:3])) == 1 and len(set(held[3:])) == 1 and held[2] != held[3]
    assert [r.scores for r in changed.records[:4]] == [r.scores for r in plain.records[:4]]
    assert changed.records[4].scores != plain.records[4].scores
    told = [data for event, data in page.events if event == "dno.changed"]
    assert len(told) == 1 and told[0]["after"] == 2 and name in told[0]

    open_page()
    repeated = run(asked(changes=changed.meta["changes"]))
    assert same_run(repeated, changed)
    assert repeated.meta["changes"] == changed.meta["changes"]


@pytest.mark.parametrize("call", [13, 16], ids=["on the way there", "on the way back"])
def test_a_change_made_in_the_middle_of_an_iteration_is_repeated(open_page: Any, call: int) -> None:
    page = open_page()

    def change(out: Tensor) -> Tensor:
        from comfyui_dno.nodes.live import sessions

        sessions.get(page.events[-1][1]["session"]).control({"learning_rate": 0.1})
        return out

    made = asked(check_gradient=False)
    calls = Calls(made.model, call, change)
    drawing = dataclasses.replace(made.drawing, model=calls.model)
    changed = run(dataclasses.replace(made, drawing=drawing))
    rates = [record.settings.learning_rate for record in changed.records]
    assert len(set(rates[:3])) == 1 and rates[-1] == 0.1
    open_page()
    assert same_run(run(asked(check_gradient=False, changes=changed.meta["changes"])), changed)


@pytest.mark.parametrize("keep", ["best", "current"])
def test_a_run_is_stopped_and_kept_as_asked(open_page: Any, keep: str) -> None:
    page = open_page(at(3, stop=keep))
    found = run(asked(learning_rate=0.5))
    assert found.last == 3 and f"keeping the {keep}" in found.stop_reason
    assert page.states() == ["running", "done"]
    open_page()
    whole = run(asked(learning_rate=0.5, iterations=3))
    assert found.best == ((3,) if keep == "current" else whole.best)
    assert whole.best != (3,), "else both would be the same"

    repeated = run(asked(learning_rate=0.5, changes=found.meta["changes"]))
    assert same_run(repeated, found)


def test_a_stop_acts_between_two_denoising_steps(open_page: Any) -> None:
    page = open_page()
    counts: list[int] = []

    def stop_in_the_middle(out: Tensor) -> Tensor:
        from comfyui_dno.nodes.live import sessions

        counts.append(calls.count)
        (event, data) = page.events[-1]
        session = sessions.get(data["session"])
        if event == "dno.step" and session.index == 1:
            session.control({"stop": "best"})
        return out

    made = asked()
    calls = Calls(made.model, 10, stop_in_the_middle)
    drawing = dataclasses.replace(made.drawing, model=calls.model)
    found = run(dataclasses.replace(made, drawing=drawing, check_gradient=False))
    assert found.last == 1 and len(counts) == 1
    assert calls.count == counts[0], "no further denoiser call"


def test_a_pause_holds_the_run_until_it_is_ended(open_page: Any) -> None:
    moments: list[float] = []

    def hand(event: str, data: dict[str, Any], session: Any) -> None:
        if event == "dno.step" and data["index"] == 1:
            session.control({"pause": True})
        if event == "dno.state" and data["state"] == "paused":
            moments.append(time.perf_counter())
            threading.Timer(0.4, lambda: session.control({"pause": False})).start()
        if event == "dno.step" and data["index"] == 2:
            moments.append(time.perf_counter())

    page = open_page(hand)
    found = run(asked(iterations=3))
    assert page.states() == ["running", "paused", "running", "done"]
    assert moments[1] - moments[0] >= 0.4
    assert found.last == 3 and "changes" not in found.meta
    plain = run(asked(iterations=3))
    assert same_run(found, plain)


def test_a_cancel_reaches_a_paused_run(open_page: Any) -> None:
    import comfy.model_management as management

    def hand(event: str, data: dict[str, Any], session: Any) -> None:
        if event == "dno.step" and data["index"] == 1:
            session.control({"pause": True})
            threading.Timer(0.2, management.interrupt_current_processing).start()

    page = open_page(hand)
    with pytest.raises(management.InterruptProcessingException):
        run(asked())
    assert page.states()[-1] == "cancelled"


def test_a_paused_run_can_be_stopped(open_page: Any) -> None:
    def hand(event: str, data: dict[str, Any], session: Any) -> None:
        if event == "dno.step" and data["index"] == 2:
            session.control({"pause": True})
        if event == "dno.state" and data["state"] == "paused":
            session.control({"stop": "current"})

    open_page(hand)
    found = run(asked())
    assert found.last == 2 and found.best == (2,)


def test_the_page_is_told_when_a_run_fails(open_page: Any) -> None:
    page = open_page()
    made = asked()

    def fail(out: Tensor) -> Tensor:
        raise ValueError("the model broke\nwith a long story")

    calls = Calls(made.model, 4, fail)
    with pytest.raises(ValueError, match="the model broke"):
        run(dataclasses.replace(made, drawing=dataclasses.replace(made.drawing, model=calls.model)))
    name, data = page.events[-1]
    assert name == "dno.state" and data["state"] == "failed" and data["reason"] == "the model broke"


def test_a_run_nobody_watches_never_waits() -> None:
    assert run(asked()).last == 6


def test_a_resumed_run_does_not_stop_where_it_was_stopped_before(open_page: Any) -> None:
    open_page(at(2, stop="best"))
    first = run(asked())
    page = open_page()
    resumed = run(asked(resume=first, changes=first.meta["changes"], iterations=4))
    assert resumed.last == 4
    steps = [data["index"] for name, data in page.events if name == "dno.step"]
    assert steps == [2, 3, 4]


def test_a_resumed_run_does_not_claim_the_changes_of_the_run_before(open_page: Any) -> None:
    open_page(at(1, learning_rate=0.1))
    first = run(asked(iterations=2))
    open_page()
    resumed = run(asked(resume=first, iterations=3))
    assert "changes" in first.meta and "changes" not in resumed.meta


def test_wrong_changes_are_refused_before_anything_is_run() -> None:
    made = asked(changes="[{}]")
    calls = Calls(made.model, -1, interrupt)
    drawing = dataclasses.replace(made.drawing, model=calls.model)
    with pytest.raises(ValueError, match="widget changes"):
        run(dataclasses.replace(made, drawing=drawing))
    assert calls.count == 0
