"""DNO Sampler (Advanced) in a graph of guider, sigmas and noise, through a real server."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure

KEPT = ("latent_image", "vae", "reward", "iterations", "learning_rate", "eta")


def advanced(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same picture as the workflow's, composed from parts."""
    at = node_of(workflow, SAMPLER)
    inputs = workflow[at]["inputs"]
    parts = {
        "guider": {
            "class_type": "CFGGuider",
            "inputs": {name: inputs[name] for name in ("model", "positive", "negative", "cfg")},
        },
        "sigmas": {
            "class_type": "BasicScheduler",
            "inputs": {name: inputs[name] for name in ("model", "scheduler", "steps", "denoise")},
        },
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": inputs["seed"]}},
    }
    optional = {name: inputs[name] for name in ("optimizer", "gradient_clip") if name in inputs}
    rest = {"check_gradient": True, "time_limit": 0.0, "memory_mb": 512}
    node = {
        "class_type": "DNO_SamplerAdvanced",
        "inputs": {
            **{name: [name, 0] for name in parts},
            **{name: inputs[name] for name in KEPT},
            **{"optimizer": "adam", "gradient_clip": 1.0, **optional, **rest},
        },
    }
    return {**workflow, **parts, at: node}


@pytest.mark.slow
def test_it_climbs_just_as_the_plain_node_does(server: ComfyServer, quick: dict[str, Any]) -> None:
    quick = with_inputs(quick, SAMPLER, seed=31)
    found = []
    for workflow, kind in ((quick, SAMPLER), (advanced(quick), "DNO_SamplerAdvanced")):
        entry = server.run(workflow, timeout=300)
        assert failure(entry) is None
        found.append(entry["outputs"][node_of(workflow, kind)]["dno"][0])
    assert found[1]["reward_after"] > found[1]["reward_before"]
    for name in ("reward_before", "reward_after"):
        assert found[1][name] == pytest.approx(found[0][name], abs=1e-5)
