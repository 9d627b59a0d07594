from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui_dno.dno_core import Auto, Backpropagation, Hybrid1, Hybrid2, ZoSgd

DEFAULTS = {
    "auto": Auto(),
    "gradient": Backpropagation(),
    "hybrid_2": Hybrid2(),
    "hybrid_1": Hybrid1(),
    "zo_sgd": ZoSgd(),
}


@pytest.fixture(scope="module")
def room(comfy: Any) -> Any:
    from comfyui_dno.nodes import estimator_node

    return estimator_node


def choices(room: Any) -> dict[str, Any]:
    kind, options = room.ZOGradientEstimator.INPUT_TYPES()["required"]["method"]
    assert kind == "COMFY_DYNAMICCOMBO_V3"
    return {each["key"]: each["inputs"].get("required", {}) for each in options["options"]}


def chosen(room: Any, **method: Any) -> Any:
    return room.ZOGradientEstimator.execute(method=method).args[0]


def test_auto_comes_first_and_widgets_keep_their_order(room: Any) -> None:
    assert {name: list(widgets) for name, widgets in choices(room).items()} == {
        "auto": ["probes", "scale"],
        "gradient": [],
        "hybrid_2": [
            "probes",
            "scale",
            "antithetic",
            "keep_gaussian",
            "probe_batch",
            "combination",
            "scaling",
        ],
        "hybrid_1": ["probes", "scale", "antithetic"],
        "zo_sgd": ["probes", "scale", "antithetic", "keep_gaussian", "probe_batch"],
    }


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_widgets_begin_with_the_core_s_own_settings(room: Any, method: str) -> None:
    widgets = {name: widget[1]["default"] for name, widget in choices(room)[method].items()}
    got = chosen(room, method=method, **widgets)
    if method == "gradient":
        assert isinstance(got, Backpropagation)
    else:
        assert got == DEFAULTS[method]


def test_the_widgets_reach_the_core(room: Any) -> None:
    got = chosen(
        room,
        method="hybrid_2",
        probes=6,
        scale=0.02,
        antithetic=True,
        keep_gaussian=False,
        probe_batch=3,
        combination="sum",
        scaling="unit",
    )
    assert got == Hybrid2(6, 0.02, True, 3, gaussian=False, combination="sum", scaling="unit")
    assert chosen(room, method="auto", probes=5, scale=0.3) == Auto(Hybrid2(5, 0.3))
    assert chosen(room, method="zo_sgd", probes=9, keep_gaussian=False) == ZoSgd(9, gaussian=False)
    assert chosen(room, method="hybrid_1", scale=0.2) == Hybrid1(scale=0.2)


def test_an_unknown_method_is_answered_with_the_known_ones(room: Any) -> None:
    with pytest.raises(ValueError, match="'spsa' is unknown. Choose one of auto, gradient"):
        chosen(room, method="spsa")


def test_every_input_has_a_tooltip_that_helps(room: Any) -> None:
    for widgets in choices(room).values():
        for name, widget in widgets.items():
            text = widget[1]["tooltip"]
            assert "sually" in text or "Recommended" in text, name
            if name in ("probes", "scale"):
                assert "Raise it" in text and "lower it" in text


def test_its_output_fits_the_sampler_s_socket(room: Any) -> None:
    from comfyui_dno.nodes.sampler_node import Sampler

    info = json.loads(json.dumps(room.ZOGradientEstimator.GET_NODE_INFO_V1()))
    assert info["display_name"] == "ZO Gradient Estimator"
    assert info["output"] == ["DNO_GRADIENT_ESTIMATOR"]
    assert Sampler.INPUT_TYPES()["optional"]["estimator"][0] == "DNO_GRADIENT_ESTIMATOR"
