"""What goes wrong in the middle of a run loses nothing, and a cancel is a cancel."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import NonFinite

from . import tiny
from .runs import request, stock
from .sabotage import CALLS, Calls, driver_out_of_memory, interrupt, nan, out_of_memory

ITERATION = 2 * CALLS
"""Denoiser calls of an iteration: a forward pass and a sweep (no gradient check here)."""


MEMORY = (out_of_memory, driver_out_of_memory)


def sabotaged(at: int, act: Callable[[Tensor], Tensor], **changes: Any) -> tuple[Any, Calls]:
    """A run whose denoiser goes wrong at a call, for good where memory runs out; none is kept."""
    calls = Calls(tiny.sd_model(torch.float32), at, act, on=act in MEMORY)
    values = {"iterations": 4, "check_gradient": False, "graph_memory": "recompute", **changes}
    return request(model=calls.model, **values), calls


@pytest.mark.parametrize("call", [2 * ITERATION, 2 * ITERATION + 2, ITERATION + 4])
@pytest.mark.parametrize(
    ("act", "word"),
    [
        (nan, "NaN"),
        (out_of_memory, "Out of memory"),
        (driver_out_of_memory, "Out of memory"),
    ],
    ids=["nan", "oom", "driver oom"],
)
def test_a_failure_after_iteration_0_returns_the_best_with_a_warning(
    act: Any, word: str, call: int
) -> None:
    from comfyui_dno.nodes import optimization

    asked, _ = sabotaged(call, act)
    result = optimization.run(asked)
    trajectory = result.trajectory
    assert len(trajectory.records) == 2
    assert word in trajectory.stop_reason
    assert trajectory.stop_reason in trajectory.warnings
    assert "iteration 2" in trajectory.stop_reason
    best = trajectory.best[0]
    assert torch.equal(result.latent["samples"][0], trajectory.latents[best][0])
    assert torch.isfinite(result.image).all()


def test_nan_at_iteration_0_is_an_error() -> None:
    from comfyui_dno.nodes import optimization

    with pytest.raises(NonFinite, match="The decoded image holds NaN"):
        optimization.run(sabotaged(1, nan)[0])


def test_out_of_memory_at_iteration_0_is_an_error() -> None:
    from comfyui_dno.nodes import optimization

    with pytest.raises(torch.OutOfMemoryError):
        optimization.run(sabotaged(1, out_of_memory)[0])


def another_error(out: Tensor) -> Tensor:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_any_other_error_is_an_error_at_every_iteration_and_the_best_picture_is_kept() -> None:
    from comfyui_dno.nodes import optimization

    before = set(kept_pictures("failed"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        optimization.run(sabotaged(2 * ITERATION, another_error)[0])
    (picture,) = set(kept_pictures("failed")) - before
    picture.unlink()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        optimization.run(sabotaged(0, another_error)[0])
    assert set(kept_pictures("failed")) == before, "nothing was there to be kept"


def kept_pictures(what: str) -> list[Path]:
    import folder_paths

    return list(Path(folder_paths.get_temp_directory()).glob(f"dno_{what}_*.png"))


@pytest.mark.parametrize("call", [0, 1, 4, ITERATION + 1, ITERATION + 5, 2 * ITERATION])
def test_a_cancel_acts_before_the_next_denoiser_call(call: int) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    before = set(kept_pictures("cancelled"))
    asked, calls = sabotaged(call, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(asked)
    assert calls.count == call + 1
    assert not management.in_training
    kept = set(kept_pictures("cancelled")) - before
    # iteration 0 is there to be kept once its forward pass was decoded and scored
    assert len(kept) == (1 if call >= CALLS else 0)
    for picture in kept:
        picture.unlink()


@pytest.mark.parametrize("decode", [1, 2, 3])
def test_a_cancel_acts_in_the_decoder_too(decode: int) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    asked, calls = sabotaged(-1, nan)
    counted = {"decodes": 0, "late": 0}

    def at_entry(*_: Any) -> None:
        counted["decodes"] += 1
        if counted["decodes"] == decode:
            management.interrupt_current_processing(True)

    def at_exit(*_: Any) -> None:
        counted["late"] += counted["decodes"] >= decode

    decoder = asked.vae.first_stage_model.decoder
    handles = [
        decoder.conv_in.register_forward_pre_hook(at_entry),
        decoder.conv_out.register_forward_pre_hook(at_exit),
    ]
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(asked)
    assert counted == {"decodes": decode, "late": 0}
    for handle in handles:
        handle.remove()


def test_the_run_after_a_cancel_is_right() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    asked, calls = sabotaged(ITERATION + 4, interrupt)
    expected = stock(request(model=calls.model, positive=asked.drawing.positive, vae=asked.vae))
    calls.count = 0
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(asked)
    calls.at = -1
    result = optimization.run(asked)
    assert torch.equal(result.trajectory.latents[0], expected["samples"])
    assert len(result.trajectory.records) == 5
    assert result.trajectory.warnings == ()


def test_the_kept_picture_is_the_best_one() -> None:
    import comfy.model_management as management
    import numpy as np
    from PIL import Image

    from comfyui_dno.nodes import optimization

    before = set(kept_pictures("cancelled"))
    asked, calls = sabotaged(2 * ITERATION, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(asked)
    (picture,) = set(kept_pictures("cancelled")) - before
    calls.at, calls.count = -1, 0
    full = optimization.run(asked).trajectory
    best = max((0, 1), key=lambda index: full.records[index].scores[0][0])
    kept = np.asarray(Image.open(picture))
    assert (kept == full.images[best][0].numpy()).all()


def test_a_time_limit_ends_the_run_after_the_iteration_in_which_it_passes() -> None:
    from comfyui_dno.nodes import optimization

    trajectory = optimization.run(request(iterations=50, time_limit=0.001)).trajectory
    assert len(trajectory.records) == 1
    assert "spent" in trajectory.stop_reason
    assert trajectory.warnings == ()


def test_nothing_on_the_outputs_holds_a_graph_or_weights() -> None:
    from comfyui_dno.nodes import optimization

    asked = request()
    result = optimization.run(asked)
    forbidden = {id(p) for p in asked.model.model.parameters()}
    forbidden |= {id(asked.model), id(asked.model.model), id(asked.vae)}
    seen: set[int] = set()
    todo: list[Any] = [result.trajectory, result.latent, result.image]
    tensors = 0
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        assert id(item) not in forbidden
        assert not isinstance(item, torch.nn.Module)
        assert "Request" not in type(item).__name__
        if isinstance(item, Tensor):
            tensors += 1
            assert item.grad_fn is None
            assert not item.requires_grad
            assert item.device.type == "cpu"
        if not callable(item):
            todo += gc.get_referents(item)
    assert tensors > 5
    assert math.isfinite(float(result.image.mean()))


def test_a_failed_run_leaves_no_graph_behind() -> None:
    """An exception's traceback would keep the whole denoiser graph alive."""
    from comfyui_dno.nodes import optimization

    asked, _ = sabotaged(ITERATION + 4, out_of_memory)
    result = optimization.run(asked)
    assert "Out of memory" in result.trajectory.stop_reason
    gc.collect()
    with_graph = [
        item for item in gc.get_objects() if type(item) is Tensor and item.grad_fn is not None
    ]
    assert with_graph == []
