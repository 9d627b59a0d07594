"""A reward without a gradient, through a real server: by itself, and with ZO Gradient Estimator."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure


def black_box(workflow: dict[str, Any], iterations: int, **method: Any) -> dict[str, Any]:
    """The workflow with JPEG size as its reward; `method` goes to ZO Gradient Estimator."""
    changed = with_inputs(workflow, SAMPLER, iterations=iterations, learning_rate=0.05)
    changed[node_of(changed, "DNO_RewardLoader")]["inputs"] = {
        "reward": "jpeg_compressibility",
        "reward.quality": 95,
        "weight": 1.0,
        "goal": "maximize",
        "target": 0.0,
        "watch_only": False,
    }
    if method:
        inputs = {f"method.{name}": value for name, value in method.items() if name != "name"}
        changed["estimator"] = {
            "class_type": "DNO_ZOGradientEstimator",
            "inputs": {"method": method["name"], **inputs},
        }
        changed[node_of(changed, SAMPLER)]["inputs"]["estimator"] = ["estimator", 0]
    return changed


def numbers(server: ComfyServer, workflow: dict[str, Any]) -> dict[str, Any]:
    entry = server.run(workflow, timeout=300)
    assert failure(entry) is None
    return dict(entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0])


@pytest.mark.slow
def test_jpeg_size_falls_without_any_estimator_connected(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    found = numbers(server, black_box(quick, 12))
    assert found["reward_after"] > found["reward_before"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"name": "auto", "probes": 4, "scale": 0.1},
        {
            "name": "hybrid_2",
            "probes": 4,
            "scale": 0.1,
            "antithetic": True,
            "keep_gaussian": True,
            "probe_batch": 2,
            "combination": "sum",
            "scaling": "unit",
        },
        {"name": "hybrid_1", "probes": 8, "scale": 0.05, "antithetic": True},
        {
            "name": "zo_sgd",
            "probes": 4,
            "scale": 0.1,
            "antithetic": False,
            "keep_gaussian": False,
            "probe_batch": 0,
        },
    ],
    ids=lambda method: method["name"],
)
def test_every_method_runs_on_a_server(
    server: ComfyServer, quick: dict[str, Any], method: dict[str, Any]
) -> None:
    found = numbers(server, black_box(quick, 2, **method))
    assert found["reward_after"] >= found["reward_before"], "the best iteration is returned"


def test_the_gradient_of_a_black_box_is_refused_with_a_way_out(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    message = failure(server.run(black_box(quick, 2, name="gradient"), timeout=120))
    assert message is not None
    assert "'jpeg_compressibility' has no gradient to climb" in message
    assert "Choose the estimator 'auto'" in message
