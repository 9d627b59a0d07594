"""A result that was drawn again: which picture is returned, and how the file keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_trajectory_file import recorded

from comfyui_dno.dno_core import Redraw, Trajectory, load_trajectory, save_trajectory
from comfyui_dno.dno_core.trajectories.file import FORMAT, TrajectoryFileError
from comfyui_dno.dno_core.trajectories.redraw import at_least_as_good


def redrawn(run: Trajectory, taken: tuple[bool, bool] = (True, False)) -> Trajectory:
    generator = torch.Generator().manual_seed(3)
    latent, image = run.latents[0], run.images[0]
    redraw = Redraw(
        winners=(2, 1),
        taken=taken,
        before=((0.1, 0.2), (0.3, 1 / 3)),
        after=((0.5, 0.1), (0.2, 5e-324)),
        seconds=1.5,
        latents=torch.randn((2, *latent.shape), generator=generator),
        images=torch.randint(0, 256, (2, *image.shape), generator=generator, dtype=torch.uint8),
    )
    return run.with_redraw(redraw)


def test_the_result_is_the_winner_where_it_is_taken_and_else_iteration_zero() -> None:
    run = redrawn(recorded())
    assert run.redraw is not None
    assert run.best == (2, 0)
    assert run.redraw.scores == ((0.5, 0.2), (0.2, 1 / 3))
    for frames, result in (
        (run.redraw.latents, run.result_latents),
        (run.redraw.images, run.result_images),
    ):
        assert torch.equal(result[0], frames[1, 0]) and torch.equal(result[1], frames[0, 1])


def test_without_a_redraw_the_result_is_the_best_iteration_s_own() -> None:
    run = recorded()
    assert torch.equal(run.result_latents, run.take(run.latents, run.best))
    assert torch.equal(run.result_images, run.take(run.images, run.best))
    forgotten = redrawn(run).with_redraw(None)
    assert forgotten.best == (2, 0)
    assert torch.equal(forgotten.result_images, run.take(run.images, (2, 0)))


def test_under_other_weights_the_other_picture_may_be_the_better() -> None:
    run = redrawn(recorded())
    assert run.redraw is not None
    assert run.redraw.judged(run.terms, (1.0, 0.0)).taken == (True, False)
    assert run.redraw.judged(run.terms, (0.0, -1.0)).taken == (True, True)
    assert run.redraw.judged(run.terms, (0.0, 1.0)).taken == (False, False)
    assert at_least_as_good(run.terms, [[1.0], [0.0]], [[1.0], [0.0]], (1.0, 0.0)) == (True,)


def test_a_redraw_is_saved_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    run = redrawn(recorded())
    file = tmp_path / "run.dno.safetensors"
    save_trajectory(run, file)
    found = load_trajectory(file)
    assert found.redraw is not None and run.redraw is not None
    for item in dataclasses.fields(Redraw):
        before, after = getattr(run.redraw, item.name), getattr(found.redraw, item.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype and torch.equal(before, after)
        else:
            assert before == after
    assert found.best == run.best


def test_a_file_holds_a_redraw_where_there_is_one(tmp_path: Path) -> None:
    for run in (recorded(), redrawn(recorded())):
        save_trajectory(run, tmp_path / "run.dno.safetensors")
        with safe_open(tmp_path / "run.dno.safetensors", framework="pt") as file:
            assert file.metadata()["version"] == "2"
            assert ("redraw" in file.keys()) == (run.redraw is not None)  # noqa: SIM118


Change = Callable[[dict[str, Any], dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, numbers: tensors.pop("redraw.images"), "no 'redraw.images'"),
        (lambda tensors, numbers: numbers.update(winners=[2, 9]), "none of its 4"),
        (lambda tensors, numbers: numbers.update(winners=[1, 1]), "another iteration"),
        (lambda tensors, numbers: numbers.update(taken=[True]), "2 images"),
        (lambda tensors, numbers: numbers.update(before=[[0.0, 0.0]]), "1 scores for 2 rewards"),
        (lambda tensors, numbers: numbers.update(after=[[0.0], [0.0]]), "1 numbers for 2 images"),
        (lambda tensors, numbers: numbers["after"][0].append({"float": "nan"}), "3 numbers"),
        (lambda tensors, numbers: numbers["after"].__setitem__(0, [0, {"float": "nan"}]), "NaN"),
        (lambda tensors, numbers: numbers.update(seconds=-1.0), "took -1.0 seconds"),
        (lambda tensors, numbers: numbers.update(surprise=1), "newer version"),
        (
            lambda tensors, numbers: tensors.update(
                {"redraw.latents": tensors["redraw.latents"][:1].clone()}
            ),
            "'redraw.latents' has shape",
        ),
        (
            lambda tensors, numbers: tensors.update(
                {"redraw.images": tensors["redraw.images"].float()}
            ),
            "'redraw.images' holds",
        ),
    ],
)
def test_a_redraw_that_cannot_be_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.dno.safetensors"
    save_trajectory(redrawn(recorded()), file)
    tensors = load_file(file)
    numbers = json.loads(tensors["redraw"].numpy().tobytes())
    change(tensors, numbers)
    text = json.dumps(numbers).encode()
    tensors["redraw"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    save_file(tensors, file, {"format": FORMAT, "version": "2"})
    with pytest.raises(TrajectoryFileError, match="damaged") as error:
        load_trajectory(file)
    assert said in str(error.value)


def test_the_run_itself_is_left_as_it_was() -> None:
    run = recorded()
    before = replace(run)
    redrawn(run)
    assert run.redraw is None and run.best == before.best
