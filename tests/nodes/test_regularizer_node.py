from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture(scope="module")
def room(comfy):
    from comfyui_dno.nodes import regularizer_node

    return regularizer_node


def inputs_of(room):
    kind, options = room.ProbabilityRegularizer.INPUT_TYPES()["required"]["method"]
    assert kind == "COMFY_DYNAMICCOMBO_V3"
    return options, {choice["key"]: choice["inputs"] for choice in options["options"]}


def chosen(room, **method):
    return room.ProbabilityRegularizer.execute(method=method).args[0]


def test_the_paper_s_regularizer_comes_first_and_off_has_no_inputs(room):
    _, choices = inputs_of(room)
    assert list(choices) == ["permutation", "off"]
    assert list(choices["permutation"]["required"]) == ["strength", "k", "permutations"]
    assert not any(choices["off"].values())


def test_defaults_are_those_that_the_core_recommends(room):
    from comfyui_dno.dno_core import PermutationRegularizer

    widgets = inputs_of(room)[1]["permutation"]["required"]
    values = {name: options["default"] for name, (_, options) in widgets.items()}
    assert chosen(room, method="permutation", **values) == PermutationRegularizer()


def test_the_widgets_reach_the_core(room):
    from comfyui_dno.dno_core import PermutationRegularizer

    got = chosen(room, method="permutation", strength=2.5, k=8, permutations=20)
    assert got == PermutationRegularizer(gamma=2.5, k=8, permutations=20)


def test_off_is_no_regularizer_at_all(room):
    from comfyui_dno.dno_core import NoRegularizer

    got = chosen(room, method="off")
    assert got == NoRegularizer() and got.gamma == 0


def test_an_unknown_method_gives_the_two_sentences(room):
    with pytest.raises(ValueError, match="'spectral' is unknown. Choose permutation or off"):
        chosen(room, method="spectral")


def test_the_ends_of_the_ranges_work(room):
    z = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    widgets = inputs_of(room)[1]["permutation"]["required"]
    for end in ("min", "max"):
        values = {name: options[end] for name, (_, options) in widgets.items()}
        penalty, gradient = chosen(room, method="permutation", **values).penalty(z, 1)
        assert torch.isfinite(penalty).all() and torch.isfinite(gradient).all()
        assert (penalty > 0).all() and gradient.shape == z.shape


def test_every_input_has_a_tooltip_that_helps_and_rare_ones_are_advanced(room):
    options, choices = inputs_of(room)
    assert "cheating" in options["tooltip"]
    widgets = choices["permutation"]["required"]
    for name, (_, widget) in widgets.items():
        assert "Raise" in widget["tooltip"] or "Higher" in widget["tooltip"], name
        assert "usually" in widget["tooltip"], name
    assert [n for n, (_, w) in widgets.items() if w.get("advanced")] == ["k", "permutations"]


def test_the_schema_is_json(room):
    info = json.loads(json.dumps(room.ProbabilityRegularizer.GET_NODE_INFO_V1()))
    assert info["display_name"] == "Probability Regularizer"
    assert info["output"] == ["DNO_REGULARIZER"]
