"""Stop rules and seed screening in a graph on a real server."""

from __future__ import annotations

from typing import Any

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure


def numbers_of(server: ComfyServer, workflow: dict[str, Any]) -> dict[str, Any]:
    entry = server.run(workflow)
    assert failure(entry) is None
    return dict(entry["outputs"][node_of(workflow, SAMPLER)]["dno"][0])


def test_a_run_with_stop_rules_ends_early_and_says_why(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    rules = {"untypical": True, "watched_falls": True, "drop": 1.0, "plateau": 2}
    rules |= {"target": False, "target_score": 0.0, "min_gain": 100.0, "patience": 1}
    quick["rules"] = {"class_type": "DNO_StopRules", "inputs": rules}
    stopped = with_inputs(quick, SAMPLER, stop=["rules", 0], iterations=30)
    numbers = numbers_of(server, stopped)
    assert numbers["stop_reason"] == "no gain above 100 in 2 iterations"
    assert numbers["iterations"] == 2


def test_seeds_are_screened_and_none_scores_below_the_seed_itself(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    plain = numbers_of(server, with_inputs(quick, SAMPLER, iterations=0))
    screened = with_inputs(quick, SAMPLER, iterations=1, screen_seeds=4, warmup=1, decay="cosine")
    numbers = numbers_of(server, screened)
    seed = quick[node_of(quick, SAMPLER)]["inputs"]["seed"]
    assert set(numbers["screened_seeds"]) <= set(range(seed, seed + 4))
    assert numbers["reward_before"] >= plain["reward_before"]
    assert (numbers["reward_before"] > plain["reward_before"]) == (
        numbers["screened_seeds"] != [seed]
    )
