from __future__ import annotations

import json

import pytest
import torch

METHODS = ["permutation", "off", "norm", "sphere", "spectral"]


@pytest.fixture(scope="module")
def room(comfy):
    from comfyui_dno.nodes import regularizer_node

    return regularizer_node


def inputs_of(room):
    kind, options = room.ProbabilityRegularizer.INPUT_TYPES()["required"]["method"]
    assert kind == "COMFY_DYNAMICCOMBO_V3"
    return options, {choice["key"]: choice["inputs"] for choice in options["options"]}


def widgets_of(room, method):
    choice = inputs_of(room)[1][method]
    return {**choice.get("required", {}), **choice.get("optional", {})}


def chosen(room, **method):
    return room.ProbabilityRegularizer.execute(method=method).args[0]


def defaults(widgets):
    return {name: options["default"] for name, (_, options) in widgets.items()}


def test_the_paper_s_regularizer_comes_first_and_widgets_keep_their_order(room):
    _, choices = inputs_of(room)
    assert list(choices) == METHODS
    widgets = {method: list(widgets_of(room, method)) for method in METHODS}
    assert widgets == {
        "permutation": ["strength", "k", "permutations", "family"],
        "off": [],
        "norm": ["strength"],
        "sphere": [],
        "spectral": ["target", "blocks"],
    }


def test_defaults_are_those_that_the_core_recommends(room):
    from comfyui_dno import dno_core as core

    expected = (
        core.PermutationRegularizer(),
        core.NoRegularizer(),
        core.NormRegularizer(),
        core.SphereProjection(),
        core.SpectralWhitening(),
    )
    for method, recommended in zip(METHODS, expected, strict=True):
        assert chosen(room, method=method, **defaults(widgets_of(room, method))) == recommended


def test_a_workflow_saved_before_there_were_families_still_runs(room):
    from comfyui_dno.dno_core import PermutationRegularizer

    required = inputs_of(room)[1]["permutation"]["required"]
    assert list(required) == ["strength", "k", "permutations"]
    got = chosen(room, method="permutation", strength=2.5, k=8, permutations=20)
    assert got == PermutationRegularizer(gamma=2.5, k=8, permutations=20)


def test_the_widgets_reach_the_core(room):
    from comfyui_dno import dno_core as core

    got = chosen(room, method="permutation", strength=2.5, k=8, permutations=20, family="uniform")
    assert got == core.PermutationRegularizer(2.5, 8, 20, "uniform")
    assert chosen(room, method="norm", strength=0.3) == core.NormRegularizer(0.3)
    got = chosen(room, method="spectral", target="gradient", blocks=2)
    assert got == core.SpectralWhitening("gradient", 2)


def test_off_and_projections_have_no_strength(room):
    for method in ("off", "sphere", "spectral"):
        assert chosen(room, method=method).gamma == 0


def test_an_unknown_method_gives_the_two_sentences(room):
    with pytest.raises(ValueError, match="'kl' is unknown. Choose permutation, .* or spectral"):
        chosen(room, method="kl")


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_the_ranges_work(room, method):
    z = torch.randn(3, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    for end in ("min", "max"):
        values = {
            name: options["options"][-1] if "options" in options else options[end]
            for name, (_, options) in widgets_of(room, method).items()
        }
        made = chosen(room, method=method, **values)
        penalty, gradient = made.penalty(z, 1)
        assert penalty.shape == (2,) and gradient.shape == z.shape
        for result in (penalty, gradient, made.project(z), made.precondition(z)):
            assert torch.isfinite(result).all()
        assert bool((penalty > 0).all()) is (method in ("permutation", "norm"))


def test_every_input_has_a_tooltip_that_helps_and_rare_ones_are_advanced(room):
    options, choices = inputs_of(room)
    assert "cheating" in options["tooltip"]
    assert all(f"{method}: " in options["tooltip"] for method in METHODS)
    advanced = []
    for method in choices:
        for name, (kind, widget) in widgets_of(room, method).items():
            if kind == "COMBO":
                assert all(f"{option}: " in widget["tooltip"] for option in widget["options"])
            else:
                assert "Raise" in widget["tooltip"] or "Higher" in widget["tooltip"], name
            assert "sually" in widget["tooltip"], name
            advanced += [name] if widget.get("advanced") else []
    assert advanced == ["k", "permutations", "family", "blocks"]


def test_the_schema_is_json(room):
    info = json.loads(json.dumps(room.ProbabilityRegularizer.GET_NODE_INFO_V1()))
    assert info["display_name"] == "Probability Regularizer"
    assert info["output"] == ["DNO_REGULARIZER"]
