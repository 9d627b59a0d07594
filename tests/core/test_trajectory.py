"""What a run leaves behind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_models import FakeReward, randn, red, small_noise, small_problem, steady, wave
from torch import Tensor, nn

from comfyui_dno.dno_core import (
    Frames,
    NoRegularizer,
    Record,
    Recorder,
    Settings,
    Term,
    TermInfo,
    Trajectory,
    Typicality,
    TypicalityReading,
    after_iterations,
    after_seconds,
    best_iterations,
    first_reason,
    optimize,
    warning_lights,
)
from comfyui_dno.dno_core.lights import SATURATION_RISE
from comfyui_dno.dno_core.trajectories.trajectory import to_uint8

INFO = TermInfo("wave", "units", 2.0, "maximize", 0.0, 1.0, False)
WATCHED = TermInfo("judge", "points", 0.5, "maximize", 0.0, 1.0, True)


def record(
    index: int,
    scores: Sequence[Sequence[float]],
    quantile: Sequence[float] = (0.5, 0.5),
    weights: Sequence[float] = (1.0, 0.0),
    saturated: Sequence[float] = (0.0, 0.0),
    seconds: float = 1.0,
) -> Record:
    return Record(
        index=index,
        scores=tuple(tuple(row) for row in scores),
        log_p=(-1.0, -1.0),
        quantile=tuple(quantile),
        saturated=tuple(saturated),
        gradient_norm=None,
        penalty=None,
        noise_rms=(1.0, 1.0),
        settings=Settings(0.01, 1.0, tuple(weights)),
        seconds=seconds,
    )


def test_the_best_is_found_per_image_and_skips_untypical_noise() -> None:
    records = [
        record(0, [[0.0, 0.0]], (0.5, 0.5), (1.0,)),
        record(1, [[1.0, 3.0]], (0.5, 0.4), (1.0,)),
        record(2, [[2.0, 9.0]], (0.011, 0.01), (1.0,)),
    ]
    assert best_iterations([INFO], records) == (2, 1), "0.01 itself is outside"


def test_iteration_0_always_counts_because_it_is_the_users_picture() -> None:
    records = [record(i, [[float(i), -float(i)]], (0.0, 0.0), (1.0,)) for i in range(3)]
    assert best_iterations([INFO], records) == (0, 0)
    typical = [records[0], dataclasses.replace(records[1], quantile=(0.9, 0.9))]
    assert best_iterations([INFO], typical) == (1, 0)


def test_new_weights_rescore_the_old_iterations() -> None:
    other = dataclasses.replace(WATCHED, watch=False)
    scores = [[[0.0], [5.0]], [[4.0], [3.0]], [[6.0], [0.0]]]
    records = [record(i, s, (0.5,), (1.0, 0.0)) for i, s in enumerate(scores)]
    assert best_iterations([INFO, other], records) == (2,)
    assert best_iterations([INFO, other], records, (0.0, 1.0)) == (0,)
    moved = [*records[:2], dataclasses.replace(records[2], settings=Settings(0, 0, (1.0, 0.4)))]
    assert best_iterations([INFO, other], moved) == (1,), "0 + 4; 2 + 2.4; 3 + 0"


def test_ties_go_to_the_earlier_iteration() -> None:
    assert best_iterations([INFO], [record(i, [[1.0, 1.0]], weights=(1.0,)) for i in range(3)]) == (
        0,
        0,
    )


def test_only_iterations_drawn_in_the_most_steps_are_compared_with_each_other() -> None:
    scores, steps = (0.0, 9.0, 1.0, 2.0), (2, 2, 5, 5)
    records = [
        dataclasses.replace(record(i, [[score]], (0.5,), (1.0,)), steps=taken)
        for i, (score, taken) in enumerate(zip(scores, steps, strict=True))
    ]
    assert best_iterations([INFO], records[:2]) == (1,), "as long as there are no others"
    assert best_iterations([INFO], records) == (3,)
    untypical = [dataclasses.replace(each, quantile=(0.0,)) for each in records]
    assert best_iterations([INFO], [*records[:3], untypical[3]]) == (2,)
    assert best_iterations([INFO], [*records[:2], *untypical[2:]]) == (0,), "the user's picture"


def recorded(count: int = 6, learning_rate: float = 0.1, **options: Any) -> tuple[Trajectory, list]:
    terms = (Term(FakeReward(wave, name="wave", scale=2.0)), Term(FakeReward(red), watch=True))
    problem = small_problem(terms=terms)
    recorder = Recorder(problem.infos, **options)
    its = list(
        itertools.islice(
            optimize(
                problem,
                small_noise(),
                steady(learning_rate, weights=(1.0, 0.0)),
                seed=0,
                regularizer=NoRegularizer(),
                typicality=Typicality(permutations=5),
            ),
            count,
        )
    )
    for it in its:
        recorder.add(it, it.latent)
    return recorder.finish("asked to", ["careful"], {"prompt": "a duck"}), its


def everything_in(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Every object that can be reached from `value` through containers and attributes."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        inner = list(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type | Tensor):
        inner = list(vars(value).values())
    for item in inner:
        yield from everything_in(item, seen)


def test_a_trajectory_holds_no_graph_no_reward_and_no_model() -> None:
    trajectory, _ = recorded()
    found = list(everything_in(trajectory))
    tensors = [v for v in found if isinstance(v, Tensor)]
    assert len(tensors) > 12
    for tensor in tensors:
        assert not tensor.requires_grad and tensor.grad_fn is None and tensor.device.type == "cpu"
    assert not any(isinstance(v, nn.Module | FakeReward | Term) for v in found)
    assert not any(callable(v) and not isinstance(v, type) for v in found)


def test_a_trajectory_tells_the_run() -> None:
    trajectory, its = recorded()
    assert len(trajectory.records) == len(trajectory.images) == len(trajectory.latents) == 6
    assert trajectory.batch == 2 and trajectory.stop_reason == "asked to"
    assert trajectory.warnings == ("careful",) and trajectory.meta == {"prompt": "a duck"}
    for i, (it, kept) in enumerate(zip(its, trajectory.records, strict=True)):
        assert kept.index == i and kept.seconds == it.seconds
        assert kept.scores == tuple(tuple(row) for row in it.scores.double().tolist())
        assert kept.log_p == tuple(it.typicality.log_p.double().tolist())
        assert kept.noise_rms == pytest.approx(
            [it.z[:, b].square().mean().sqrt().item() for b in range(2)]
        )
        assert torch.equal(trajectory.latents[i], it.latent)
        assert torch.equal(trajectory.images[i], to_uint8(it.image))
    expected = torch.stack([it.objective for it in its])
    assert torch.allclose(trajectory.objectives(), expected)
    assert torch.equal(trajectory.objectives((0.0, 1.0)), torch.stack([it.scores[1] for it in its]))


def test_the_best_noise_makes_the_best_picture_and_the_last_noise_goes_on() -> None:
    trajectory, its = recorded(8)
    assert trajectory.best_noise_at == trajectory.best
    assert min(trajectory.best) > 0, "the run climbed"
    again = small_problem().evaluate(trajectory.best_noise, (1.0,))
    expected = trajectory.take(trajectory.images, trajectory.best)
    assert torch.equal(to_uint8(again.image), expected)
    for image, best in enumerate(trajectory.best):
        assert torch.equal(trajectory.best_noise[:, image], its[best].z[:, image])
    assert torch.equal(trajectory.last_noise, its[-1].z)


def test_a_noise_that_is_not_the_best_says_so() -> None:
    """Weights moved at the end can crown an iteration whose noise was not kept."""
    recorder = Recorder((INFO, dataclasses.replace(WATCHED, watch=False)))
    _, its = recorded(3)
    scores = ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 9.0]], [[5.0, 5.0], [0.0, 0.0]])
    reading = TypicalityReading(torch.zeros(2), torch.ones(2))
    for it, row in zip(its, scores, strict=True):
        weights = (1.0, 0.0) if it.index < 2 else (1.0, 0.0)
        settings = Settings(0.1, 0.0, weights)
        changed = dataclasses.replace(
            it, scores=torch.tensor(row), typicality=reading, settings=settings
        )
        recorder.add(changed, it.latent)
    assert recorder.finish("").best_noise_at == recorder.best == (2, 2)
    late = dataclasses.replace(
        its[2],
        index=3,
        scores=torch.zeros(2, 2),
        typicality=reading,
        settings=Settings(0.1, 0.0, (0.0, 1.0)),
    )
    recorder.add(late, its[2].latent)
    trajectory = recorder.finish("")
    assert trajectory.best == (1, 1) and trajectory.best_noise_at == (2, 2)


def test_a_trajectory_without_iterations_is_refused() -> None:
    with pytest.raises(RuntimeError, match="No iteration"):
        Recorder((INFO,)).finish("")


def test_pictures_are_truncated_to_bytes_as_comfyui_saves_them() -> None:
    image = torch.tensor([0.0, 0.9999, 1.0, 127.9 / 255]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(image)[0, :, :, 0].flatten().tolist() == [0, 254, 255, 127]
    assert to_uint8(image).shape == (1, 2, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16, torch.float16])
def test_frames_beyond_the_byte_cap_lie_in_files_and_read_back_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = tmp_path / "not" / "there yet"
    originals = [(randn(2, 3, 4, 5, seed=i) * 50).to(dtype) for i in range(4)]
    originals[3] = originals[3].movedim(1, -1)
    size = originals[0].numel() * originals[0].element_size()
    frames = Frames(byte_cap=2 * size, folder=folder)
    for frame in originals:
        frames.append(frame)
    assert len(frames) == 4 and len(list(folder.iterdir())) == 2
    for index, frame in enumerate(originals):
        assert frames[index].dtype == dtype and torch.equal(frames[index], frame)


def test_frames_without_a_folder_stay_in_memory_and_are_copies() -> None:
    frames, frame = Frames(byte_cap=0), torch.ones(3, requires_grad=True)
    frames.append(frame)
    frames[0].zero_()
    with torch.no_grad():
        frame.zero_()
    assert frames[0].tolist() == [1, 1, 1] and not frames[0].requires_grad


def test_a_deleted_file_says_what_happened_and_what_to_do(tmp_path: Path) -> None:
    frames = Frames(byte_cap=0, folder=tmp_path)
    frames.append(torch.ones(3))
    (file,) = tmp_path.iterdir()
    assert np.load(file).dtype == np.uint8
    file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        frames[0]
    message = str(error.value)
    assert file.name in message and "iteration 0" in message
    assert message.count(". ") == 1 and message.endswith(".")


def test_a_run_past_its_byte_cap_can_still_be_scrubbed(tmp_path: Path) -> None:
    kept, its = recorded()
    spilled, _ = recorded(byte_cap=1000, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) > 4
    for i in range(len(its)):
        assert torch.equal(kept.images[i], spilled.images[i])
        assert torch.equal(kept.latents[i], spilled.latents[i])


def test_stop_rules_look_at_the_records_and_give_their_reason() -> None:
    records = [record(i, [[0.0, 0.0]], seconds=2.5) for i in range(4)]
    assert after_iterations(4)(records) is None
    assert after_iterations(3)(records) == "all 3 iterations done"
    assert after_iterations(0)(records[:1]) == "all 0 iterations done"
    assert after_seconds(10.5)(records) is None
    assert after_seconds(10.0)(records) == "10 s spent of 10 s"
    rules = [after_iterations(9), after_seconds(5.0), after_iterations(1)]
    assert first_reason(rules, records) == "10 s spent of 5 s"
    assert first_reason(rules[:1], records) is None and first_reason([], records) is None


def test_no_light_is_on_while_all_is_well() -> None:
    records = [record(0, [[0, 0], [1, 1]]), record(1, [[3, 3], [0.8, 0.8]])]
    assert warning_lights((INFO, WATCHED), records) == ()
    untypical_at_the_start = [record(0, [[0, 0], [1, 1]], quantile=(0.0, 0.5))]
    assert warning_lights((INFO, WATCHED), untypical_at_the_start) == ()


def test_each_light_says_its_own_sentence() -> None:
    start = record(0, [[0, 0], [1, 1]], saturated=(0.1, 0.1))
    left = record(1, [[3, 3], [1, 1]], quantile=(0.5, 0.01))
    assert "iteration 1" in warning_lights((INFO, WATCHED), [start, left])[0]
    burnt = record(1, [[3, 3], [1, 1]], saturated=(0.1, 0.15 + SATURATION_RISE))
    assert (
        f"{0.05 + SATURATION_RISE:.0%} more" in warning_lights((INFO, WATCHED), [start, burnt])[0]
    )
    fallen = record(1, [[3, 3], [0.4, 0.4]])
    (light,) = warning_lights((INFO, WATCHED), [start, fallen])
    assert "'judge' has fallen" in light


def test_a_watched_reward_is_judged_by_its_goal_and_only_while_the_objective_rises() -> None:
    start = record(0, [[0, 0], [1, 1]])
    minimized = dataclasses.replace(WATCHED, goal="minimize")
    larger, smaller = record(1, [[3, 3], [2, 2]]), record(1, [[3, 3], [0, 0]])
    assert len(warning_lights((INFO, minimized), [start, larger])) == 1
    assert warning_lights((INFO, minimized), [start, smaller]) == ()
    both_fell = record(1, [[-3, -3], [0, 0]])
    assert warning_lights((INFO, WATCHED), [start, both_fell]) == ()
