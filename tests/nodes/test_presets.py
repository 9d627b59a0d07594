"""Presets: what they set, what they leave, and that every value is one the widgets take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui_dno.dno_core import Hybrid1, ZoSgd


@pytest.fixture(scope="module")
def presets(comfy: Any) -> Any:
    from comfyui_dno.nodes import presets

    return presets


@pytest.fixture(scope="module")
def widgets(comfy: Any) -> dict[str, Any]:
    from comfyui_dno.nodes.sampler_node import Sampler

    info = Sampler.INPUT_TYPES()
    return {**info["required"], **info["optional"]}


def test_every_value_is_one_that_its_widget_takes(presets: Any, widgets: dict[str, Any]) -> None:
    for values in presets.PRESETS.values():
        for name, value in values.items():
            kind, options = widgets[name]
            if kind == "COMBO":
                assert value in options["options"]
            else:
                assert options["min"] <= value <= options["max"], name


def test_the_page_is_given_the_values(presets: Any, widgets: dict[str, Any]) -> None:
    _, options = widgets["preset"]
    assert options["dno_presets"] == presets.PRESETS
    assert options["options"] == ["custom", *presets.PRESETS] and options["default"] == "custom"


def test_custom_and_no_preset_leave_everything_as_it_is(presets: Any) -> None:
    inputs = {"iterations": 7, "learning_rate": 0.5}
    assert presets.with_preset(inputs) == inputs
    assert presets.with_preset({**inputs, "preset": "custom"}) == inputs


def test_a_preset_sets_what_it_names_and_nothing_else(presets: Any) -> None:
    inputs = {"iterations": 7, "eta": 0.5, "preset": "strong"}
    found = presets.with_preset(inputs)
    assert found == {"eta": 0.5, **presets.PRESETS["strong"]}
    assert inputs["preset"] == "strong", "the inputs are left as they were"


def test_low_vram_needs_no_graph_of_the_model_and_keeps_a_connected_estimator(
    presets: Any,
) -> None:
    found = presets.with_preset({"preset": "low VRAM"})
    assert isinstance(found["estimator"], ZoSgd) and not found["estimator"].pulls(())
    connected = Hybrid1()
    found = presets.with_preset({"preset": "low VRAM", "estimator": connected})
    assert found["estimator"] is connected


def test_an_unknown_preset_is_refused(presets: Any) -> None:
    with pytest.raises(ValueError, match="knows no preset 'turbo'. Use one of custom, fast"):
        presets.with_preset({"preset": "turbo"})


def test_the_help_page_has_the_measured_numbers(presets: Any) -> None:
    root = Path(__file__).parents[2]
    path = root / "benchmarks" / "results" / "presets.json"
    found = json.loads(path.read_text(encoding="utf-8"))["presets"]
    page = (root / "web" / "docs" / "DNO_Sampler.md").read_text(encoding="utf-8")
    assert list(found) == list(presets.PRESETS)
    for name, form in (("reward", ".2f"), ("forwards", "d")):
        *first, last = (format(each[name], form) for each in found.values())
        assert f"{', '.join(first)} and {last}" in page
