"""Stop Rules: from widgets to the core's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui_dno.dno_core import StopChoice, TermInfo

TERM = TermInfo("brightness", "-1 to 1", 0.5, "maximize", 0.0, 1.0, False)


@pytest.fixture(scope="module")
def node(comfy: object) -> Any:
    from comfyui_dno.nodes.stop_node import StopRules

    return StopRules


def widgets(node: Any) -> dict[str, Any]:
    return {name: options for name, (_, options) in node.INPUT_TYPES()["required"].items()}


def chosen(node: Any, **changes: Any) -> StopChoice:
    values = {name: options["default"] for name, options in widgets(node).items()} | changes
    return node.execute(**values).args[0]


def test_by_default_it_is_what_the_core_recommends(node: Any) -> None:
    assert chosen(node) == StopChoice()
    assert StopChoice().untypical and StopChoice().watched_falls
    assert StopChoice().target is None and StopChoice().plateau == 0


def test_the_widgets_reach_the_core(node: Any) -> None:
    changes = {"untypical": False, "watched_falls": False, "drop": 0.5, "plateau": 7}
    changes |= {"min_gain": 0.1, "patience": 2}
    assert chosen(node, **changes) == StopChoice(None, 7, 0.1, False, False, 0.5, 2)


def test_a_target_score_counts_only_with_target_on(node: Any) -> None:
    assert chosen(node, target_score=0.4).target is None
    assert chosen(node, target=True, target_score=0.4).target == 0.4
    assert chosen(node, target=True).target == 0.0


@pytest.mark.parametrize("end", ["min", "max"])
def test_the_ends_of_the_ranges_make_rules(node: Any, end: str) -> None:
    ends = {name: o[end] for name, o in widgets(node).items() if end in o}
    choice = chosen(node, target=True, **ends)
    rules = choice.rules([TERM])
    assert len(rules) == 3 + (end == "max")


def test_widgets_are_only_ever_appended(node: Any) -> None:
    names = ["untypical", "watched_falls", "drop", "plateau", "target", "target_score"]
    assert list(widgets(node))[: len(names) + 2] == [*names, "min_gain", "patience"]


def test_every_input_has_a_tooltip_that_helps(node: Any) -> None:
    for name, options in widgets(node).items():
        assert len(options["tooltip"]) > 40 and options["tooltip"].endswith("."), name
        if "min" in options and name != "target_score":
            assert "aise" in options["tooltip"] and "sually" in options["tooltip"], name
    assert {n for n, o in widgets(node).items() if o.get("advanced")} == {"min_gain", "patience"}
    schema = node.GET_SCHEMA()
    assert schema.display_name == "Stop Rules"
    assert schema.outputs[0].io_type == "DNO_STOP"
    json.dumps(node.INPUT_TYPES())
