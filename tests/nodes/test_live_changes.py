"""Changes by hand: what they do to the settings, what is refused, how they are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui_dno.dno_core import Settings, TermInfo

BASE = Settings(0.03, 1.0, (1.0, 0.5, 0.0), 1.0)


def info(name: str, weight: float = 1.0, watch: bool = False) -> TermInfo:
    return TermInfo(name, "unit", 1.0, "maximize", 0.0, weight, watch)


TERMS = (info("a"), info("b", 0.5), info("judge", 1.0, watch=True))


@pytest.fixture(scope="module")
def live(comfy: Any) -> Any:
    from comfyui_dno.nodes.live import changes

    return changes


def test_a_change_holds_from_the_iteration_after_it(live: Any) -> None:
    changes = [
        live.Change(3, learning_rate=0.01),
        live.Change(5, gamma=2.0, weights=(2.0, 0.0, 0.0)),
        live.Change(5, learning_rate=0.02),
    ]
    assert live.settings_with(BASE, changes, 3) == BASE
    assert live.settings_with(BASE, changes, 4).learning_rate == 0.01
    late = live.settings_with(BASE, changes, 6)
    assert late == Settings(0.02, 2.0, (2.0, 0.0, 0.0), 1.0)


def test_the_schedule_of_the_learning_rate_starts_from_the_changed_one(live: Any) -> None:
    from types import SimpleNamespace

    from comfyui_dno.dno_core import learning_rate_at
    from comfyui_dno.nodes.pace import settings_of

    request: Any = SimpleNamespace(warmup=0, iterations=10, decay="cosine")
    changed = [live.Change(4, learning_rate=0.1)]
    at = settings_of(request, BASE, lambda index: changed)
    assert at(4).learning_rate == learning_rate_at(4, 0.03, 0, 10, "cosine")
    assert at(5).learning_rate == learning_rate_at(5, 0.1, 0, 10, "cosine")


def test_what_is_written_is_read_again(live: Any) -> None:
    changes = (
        live.Change(0, learning_rate=0.01),
        live.Change(7, weights=(0.1, 0.2, 0.0)),
        live.Change(9, stop="current"),
    )
    assert live.read_changes(live.write_changes(changes), TERMS) == changes
    assert live.write_changes(()) == "" and live.read_changes("  ", TERMS) == ()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"steps": 3}, "no 'steps' to change"),
        ({"learning_rate": "fast"}, "learning_rate must be a number from 0 to 10"),
        ({"learning_rate": True}, "learning_rate must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"learning_rate": 11}, "learning_rate must be"),
        ({"gamma": -0.1}, "gamma must be a number"),
        ({"gamma": 10**400}, "gamma must be a number"),
        ({"weights": [1, 1]}, "a list of 3 numbers"),
        ({"weights": {"a": 1}}, "a list of 3 numbers"),
        ({"weights": [1, 1, 1]}, "judge is only watched"),
        ({"weights": [0, 0, 0]}, "Leave one of them above 0"),
        ({"weights": [1, None, 0]}, "a weight must be a number"),
        ({"stop": "now"}, "Use one of"),
        ({"stop": ["best"]}, "Use one of"),
    ],
)
def test_what_is_not_right_is_refused_with_the_reason(
    live: Any, asked: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(live.ChangeError, match=complaint):
        live.checked(asked, 0, TERMS)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "7",
        '[{"learning_rate": 0.1}]',
        '[{"after": -1, "gamma": 1}]',
        '[{"after": true}]',
        '[{"after": 1, "gamma": 1e9}]',
        json.dumps([{"after": 1, "shell": "x"}]),
    ],
)
def test_a_widget_that_cannot_be_followed_is_named(live: Any, text: str) -> None:
    with pytest.raises(live.ChangeError, match="The widget changes of DNO Sampler"):
        live.read_changes(text, TERMS)


WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 3, "type": "DNO_Sampler", "widgets_values": [8, "fixed", 10]},
        {"id": 4, "type": "inner", "widgets_values": []},
    ],
    "definitions": {
        "subgraphs": [
            {"id": "inner", "nodes": [{"id": 7, "type": "DNO_Sampler", "widgets_values": [1, ""]}]}
        ]
    },
}


@pytest.mark.parametrize(("node_id", "position"), [("3", 4), ("4:7", 1)])
def test_saved_pictures_carry_the_changes_in_their_workflow(
    comfy: Any, node_id: str, position: int
) -> None:
    from comfyui_dno.nodes.live.metadata import record_changes

    before = json.dumps(WORKFLOW)
    prompt = {node_id: {"class_type": "DNO_Sampler", "inputs": {"seed": 8}}}
    inputs = prompt[node_id]["inputs"]
    extra = {"workflow": WORKFLOW}
    record_changes(prompt, extra, node_id, "[]", position)
    assert json.dumps(WORKFLOW) == before and inputs == {"seed": 8}
    assert prompt[node_id]["inputs"] == {"seed": 8, "changes": "[]"}
    assert json.dumps(extra["workflow"]).count('"[]"') == 1
    found = extra["workflow"]["nodes"][0]
    if node_id == "4:7":
        found = extra["workflow"]["definitions"]["subgraphs"][0]["nodes"][0]
    assert found["widgets_values"][position] == "[]"


def test_without_a_workflow_nothing_is_written(comfy: Any) -> None:
    from comfyui_dno.nodes.live.metadata import record_changes

    record_changes(None, None, "3", "[]", 0)
    extra: dict[str, Any] = {"workflow": {"nodes": []}}
    record_changes({}, extra, "3", "[]", 0)
    assert extra == {"workflow": {"nodes": []}}
