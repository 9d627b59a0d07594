"""Fewer steps, a cheaper gradient and the tiny VAE, through a real server."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure


@pytest.mark.slow
def test_what_was_climbed_with_few_steps_comes_out_drawn_with_all_of_them(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    plain = with_inputs(quick, SAMPLER, seed=41, iterations=0)
    cheap = with_inputs(
        quick,
        SAMPLER,
        seed=41,
        iterations=3,
        optimize_steps=2,
        gradient_mode="spread k",
        gradient_steps=1,
        finish_iterations=1,
    )
    found = {}
    for name, workflow in (("plain", plain), ("cheap", cheap)):
        entry = server.run(workflow, timeout=300)
        assert failure(entry) is None
        found[name] = entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0]
    cheap_run, redraw = found["cheap"], found["cheap"]["redraw"]
    assert found["plain"]["redraw"] is None
    assert cheap_run["reward_before"] == pytest.approx(found["plain"]["reward_before"], abs=1e-5)
    assert redraw["reward_before_in_run"] != pytest.approx(cheap_run["reward_before"], abs=1e-4)
    assert cheap_run["best_iteration"][0] >= 2, "of those that took all steps"
    assert redraw["reward_after_in_run"] == pytest.approx(cheap_run["reward_after"], abs=1e-5)
    assert cheap_run["reward_after"] > cheap_run["reward_before"]
    assert redraw["taken"] == [True]
    assert 0 < cheap_run["gradient_cosine"][0] < 0.999


@pytest.mark.slow
def test_a_model_family_without_a_tiny_vae_is_told_what_to_do(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    entry = server.run(with_inputs(quick, SAMPLER, seed=43, loop_decoder="tiny VAE"), timeout=300)
    said = failure(entry)
    assert said is not None
    assert "no tiny VAE for the latents of this model (DemoLatent)" in str(said)
    assert "full VAE" in str(said)
