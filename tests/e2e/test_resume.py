"""A run is saved by one prompt and gone on with by another, on a real server."""

from __future__ import annotations

import copy
from typing import Any

from comfyui_dno.dno_core import load_trajectory
from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ComfyServer, failure


def saving(workflow: dict[str, Any], prefix: str) -> dict[str, Any]:
    changed = copy.deepcopy(workflow)
    changed["saver"] = {
        "class_type": "DNO_SaveTrajectory",
        "inputs": {"trajectory": [node_of(workflow, SAMPLER), 2], "filename_prefix": prefix},
    }
    return changed


def resuming(workflow: dict[str, Any], file: str, **inputs: Any) -> dict[str, Any]:
    changed = with_inputs(workflow, SAMPLER, resume=["loader", 0], **inputs)
    changed["loader"] = {
        "class_type": "DNO_LoadTrajectory",
        "inputs": {"file": file, "memory_mb": 512},
    }
    return changed


def saved_by(server: ComfyServer, workflow: dict[str, Any]) -> str:
    """The file, below the output folder, that the workflow's run was saved to."""
    entry = server.run(workflow)
    assert failure(entry) is None
    return str(entry["outputs"]["saver"]["dno"][0])


def test_a_saved_run_goes_on_in_another_prompt_to_the_bit(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    part = saved_by(server, saving(with_inputs(quick, SAMPLER, iterations=1), "dno/part"))
    assert part == "dno/part_00001_.dno.safetensors"
    listed = server.object_info("DNO_LoadTrajectory")["DNO_LoadTrajectory"]["input"]["required"]
    assert f"output/{part}" in listed["file"][1]["options"]
    resumed = saved_by(server, saving(resuming(quick, f"output/{part}", iterations=3), "dno/more"))
    whole = saved_by(server, saving(with_inputs(quick, SAMPLER, iterations=3), "dno/whole"))
    a, b = (load_trajectory(server.base / "output" / file) for file in (resumed, whole))
    assert [record.scores for record in a.records] == [record.scores for record in b.records]
    assert len(a.records) == 4 and a.best == b.best
    assert a.last_noise.equal(b.last_noise)
    assert all(a.images[i].equal(b.images[i]) for i in range(4))


def test_another_seed_or_file_ends_in_a_sentence(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    file = saved_by(server, saving(with_inputs(quick, SAMPLER, iterations=1), "dno/seeded"))
    entry = server.run(resuming(quick, f"output/{file}", seed=4321))
    message = str(failure(entry))
    assert message.startswith("DNO_Sampler: The run to resume was begun with seed 8")
    assert "the widget says 4321" in message
    changed = server.base / "output" / file
    changed.write_bytes(changed.read_bytes()[:5000])
    message = str(failure(server.run(resuming(quick, f"output/{file}"))))
    assert message.startswith("DNO_LoadTrajectory: seeded_00001_.dno.safetensors is cut short")
    assert server.is_alive() and server.is_idle()
