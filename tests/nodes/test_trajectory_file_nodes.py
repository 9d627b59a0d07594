"""Save Trajectory and Load Trajectory: names, folders and what the nodes say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_dno.dno_core import Trajectory
from comfyui_dno.tests.nodes.synthetic_run import BRIGHTNESS, WATCHED, synthetic_run


@pytest.fixture(scope="module")
def rooms(comfy: object) -> Any:
    from comfyui_dno.nodes import trajectory_file_nodes

    return trajectory_file_nodes


@pytest.fixture
def base(rooms: Any, tmp_path: Path) -> Iterator[Path]:
    """An input, an output and a temp folder of this test's own."""
    import folder_paths

    places = ("input", "output", "temp")
    before = {name: getattr(folder_paths, f"get_{name}_directory")() for name in places}
    for name in places:
        (tmp_path / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(tmp_path / name))
    yield tmp_path
    for name, folder in before.items():
        getattr(folder_paths, f"set_{name}_directory")(folder)


@pytest.fixture
def said(rooms: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node "7" wrote on itself."""
    lines: dict[str, list[str]] = {"7": []}
    monkeypatch.setattr(rooms, "send_text", lambda line, node_id: lines[node_id].append(line))
    return lines["7"]


def execute(node: Any, **inputs: Any) -> Any:
    """Run a node as ComfyUI does, under inference mode and on a copy of the class."""
    from comfy_api.internal import make_locked_method_func
    from comfy_api.latest import io

    node.GET_SCHEMA()
    copy = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    with torch.inference_mode():
        return make_locked_method_func(node, "execute", copy)(**inputs)


def options(rooms: Any) -> list[str]:
    (file, _) = rooms.LoadTrajectory.GET_SCHEMA().inputs
    return list(file.options)


def saved(rooms: Any, run: Trajectory | None = None, **inputs: Any) -> Path:
    import folder_paths

    done = execute(rooms.SaveTrajectory, trajectory=run or synthetic_run(), **inputs)
    return Path(folder_paths.get_output_directory(), done.ui["dno"][0])


def test_every_input_and_output_has_a_tooltip_that_helps(rooms: Any) -> None:
    for node in (rooms.SaveTrajectory, rooms.LoadTrajectory):
        schema = node.GET_SCHEMA()
        assert len(schema.description) > 50 and schema.search_aliases
        for item in (*schema.inputs, *schema.outputs):
            assert len(item.tooltip or "") > 20, f"{node.__name__}.{item.id}"
    assert rooms.SaveTrajectory.GET_SCHEMA().is_output_node


def test_what_is_saved_is_listed_and_loaded_again(rooms: Any, base: Path, said: list[str]) -> None:
    run = synthetic_run((BRIGHTNESS, WATCHED), batch=2)
    done = execute(rooms.SaveTrajectory, trajectory=run)
    assert done.args[0] is run
    assert done.ui["dno"] == ["dno/run_00001_.dno.safetensors"]
    assert "saved: output/dno/run_00001_.dno.safetensors" in said[0] == done.ui["text"][0]
    assert options(rooms) == ["output/dno/run_00001_.dno.safetensors"]
    (back,) = execute(rooms.LoadTrajectory, file=options(rooms)[0]).args
    assert back.records == run.records and back.meta == run.meta
    assert torch.equal(back.images[3], run.images[3])
    assert said[1] == (
        "iteration 0 to 4, 2 of 16x16, best: 4\nrewards: brightness, clip_score\nseed 7, cfg 3.0"
    )


def test_saving_again_takes_the_next_number_and_overwrites_nothing(
    rooms: Any, base: Path, said: list[str]
) -> None:
    first = saved(rooms)
    before = first.read_bytes()
    second, other = saved(rooms), saved(rooms, filename_prefix="dno/other")
    assert [p.name for p in (second, other)] == [
        "run_00002_.dno.safetensors",
        "other_00001_.dno.safetensors",
    ]
    assert first.read_bytes() == before
    second.unlink()
    assert saved(rooms) == second, "the highest number and one"


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out", "", "a/../../out", "..", "dno/\0"])
def test_nothing_is_written_outside_of_the_output_folder(
    prefix: str, rooms: Any, base: Path, said: list[str]
) -> None:
    with pytest.raises(ValueError, match="filename_prefix"):
        execute(rooms.SaveTrajectory, trajectory=synthetic_run(), filename_prefix=prefix)
    assert [path for path in base.rglob("*") if path.is_file()] == []


def test_the_list_has_both_folders_the_newest_first(
    rooms: Any, base: Path, said: list[str]
) -> None:
    assert options(rooms) == [rooms.NOTHING]
    older, newer = saved(rooms), saved(rooms)
    mine = base / "input" / "mine.dno.safetensors"
    mine.write_bytes(older.read_bytes())
    (base / "input" / "lora.safetensors").write_bytes(b"")
    (base / "input" / "folder.dno.safetensors").mkdir()
    for age, path in enumerate((newer, mine, older)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert options(rooms) == [
        "output/dno/run_00002_.dno.safetensors",
        "mine.dno.safetensors",
        "output/dno/run_00001_.dno.safetensors",
    ]
    (back,) = execute(rooms.LoadTrajectory, file="mine.dno.safetensors").args
    assert len(back.records) == 5


@pytest.mark.parametrize(
    "name",
    [
        "../secret.dno.safetensors",
        "output/../../secret.dno.safetensors",
        "output/dno/../../secret.dno.safetensors",
        "output/secret.dno.safetensors",
        "/secret.dno.safetensors",
        "..\\secret.dno.safetensors",
        "secret.safetensors",
        "",
        "(no .dno.safetensors file yet)",
    ],
)
def test_no_other_folder_can_be_read(name: str, rooms: Any, base: Path) -> None:
    for place in (base, base / "output"):
        (place / "secret.dno.safetensors").write_bytes(b"")
        (place / "secret.safetensors").write_bytes(b"")
    (base / "input" / "secret.safetensors").write_bytes(b"")
    assert "Choose one of its list" in rooms.LoadTrajectory.validate_inputs(file=name)
    with pytest.raises(ValueError, match="Choose one of its list"):
        execute(rooms.LoadTrajectory, file=name)


def test_a_file_that_went_away_is_told_before_the_queue_and_in_it(rooms: Any, base: Path) -> None:
    message = rooms.LoadTrajectory.validate_inputs(file="gone.dno.safetensors")
    assert message.startswith("The trajectory file gone.dno.safetensors is not there.")
    with pytest.raises(ValueError, match="is not there"):
        execute(rooms.LoadTrajectory, file="gone.dno.safetensors")


def test_a_damaged_file_is_named_and_left_alone(rooms: Any, base: Path, said: list[str]) -> None:
    path = saved(rooms)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="run_00001_.dno.safetensors is cut short"):
        execute(rooms.LoadTrajectory, file="output/dno/run_00001_.dno.safetensors")
    assert path.is_file()


def test_a_file_that_changed_is_read_again_and_others_are_not(
    rooms: Any, base: Path, said: list[str]
) -> None:
    path, name = saved(rooms), "output/dno/run_00001_.dno.safetensors"
    node = rooms.LoadTrajectory
    first = node.fingerprint_inputs(file=name)
    assert node.fingerprint_inputs(file=name) == first
    path.write_bytes(path.read_bytes() + b"1")
    assert node.fingerprint_inputs(file=name) != first


def test_pictures_beyond_the_memory_limit_go_to_the_temp_folder(
    rooms: Any, base: Path, said: list[str]
) -> None:
    saved(rooms)
    name = "output/dno/run_00001_.dno.safetensors"
    (run,) = execute(rooms.LoadTrajectory, file=name, memory_mb=0).args
    assert len(list((base / "temp" / "dno").iterdir())) == 10
    assert torch.equal(run.images[4], synthetic_run().images[4])


def test_pick_iteration_and_reward_curve_take_a_loaded_run(
    rooms: Any, base: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.nodes import trajectory_nodes

    monkeypatch.setattr(trajectory_nodes, "send_text", lambda line, node_id: None)
    run = synthetic_run((BRIGHTNESS, WATCHED), batch=2)
    saved(rooms, run)
    (back,) = execute(rooms.LoadTrajectory, file=options(rooms)[0]).args
    for index in (-1, 0, 3):
        for kept, loaded in zip(
            execute(trajectory_nodes.PickIteration, trajectory=run, index=index).args,
            execute(trajectory_nodes.PickIteration, trajectory=back, index=index).args,
            strict=True,
        ):
            a, b = (v["samples"] if isinstance(v, dict) else v for v in (kept, loaded))
            assert torch.equal(a, b)
    curves = [
        execute(trajectory_nodes.RewardCurve, trajectory=t, width=512).args[0] for t in (run, back)
    ]
    assert torch.equal(*curves)
