"""What the older ComfyUI versions do not have, and the tests that ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from comfyui_dno.launcher import comfyui


@dataclass(frozen=True)
class Need:
    """`tests`, as their node ids begin, need ComfyUI `version` because of `what`."""

    version: str
    what: str
    tests: tuple[str, ...]


NEEDS = (
    Need(
        "0.24.1",
        "Dual Model Guider is a node of newer versions",
        (
            "tests/bridge/test_advanced.py::test_it_starts_from_the_picture_of_sampler_custom_"
            "advanced[dual_model_guider",
            "tests/bridge/test_advanced.py::test_the_gradient_equals_central_differences["
            "dual_model_guider",
            "tests/bridge/test_advanced.py::test_the_guider_is_left_as_it_was",
        ),
    ),
    Need(
        "0.24.1",
        "Ernie-Image is a model of newer versions",
        (
            "tests/bridge/test_families.py::test_a_family_whose_kernels_have_no_backward_is_"
            "refused_and_climbs_without_a_gradient[Ernie-Image",
        ),
    ),
    Need(
        "0.24.1",
        "CFG Override is a node of newer versions",
        (
            "tests/bridge/test_cfg_interval.py::test_inside_the_interval_uncond_is_not_computed",
            "tests/bridge/test_cfg_interval.py::test_an_interval_has_the_right_gradient",
            "tests/bridge/test_cfg_interval.py::test_an_interval_on_flux_has_the_right_gradient",
            "tests/bridge/test_cfg_interval.py::test_a_run_with_an_interval_starts_from_"
            "ksamplers_picture",
        ),
    ),
    Need(
        "0.24.1",
        "Cosmos Predict2 runs on kernels without a backward in newer versions",
        (
            "tests/bridge/test_families.py::test_a_family_whose_kernels_have_no_backward_is_"
            "refused_and_climbs_without_a_gradient[Cosmos Predict2",
        ),
    ),
    Need(
        "0.24.1",
        "a tiny VAE for Flux 2 is known to newer versions",
        (
            "tests/bridge/test_tiny_vae.py::test_a_decoder_has_the_name_that_comfyui_gives_it["
            "taef2_decoder",
        ),
    ),
    Need(
        "0.30.0",
        "Krea 2 is a model of newer versions",
        (
            "tests/bridge/test_families.py::test_a_family_without_double_precision_passes_the_"
            "check_of_a_run[Krea 2",
        ),
    ),
)


def unmet(tree: Path) -> tuple[Need, ...]:
    """What the ComfyUI in `tree` is too old for."""
    found = comfyui.numbers(comfyui.version_of(tree))
    return tuple(need for need in NEEDS if comfyui.numbers(need.version) > found)


def left_out(item: pytest.Item, needs: tuple[Need, ...]) -> Need | None:
    """The first of `needs` that this test has."""
    return next((need for need in needs if item.nodeid.startswith(need.tests)), None)
