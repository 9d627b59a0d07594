"""A run in two parts: its last iterations take another problem, and only they are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from core_models import (
    SIGMAS,
    FakeReward,
    mild_denoiser,
    small_noise,
    small_problem,
    start_scaled,
    steady,
    wave,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyui_dno.dno_core import (
    OPTIMIZERS,
    CoarseMap,
    Coarsening,
    GradientMode,
    Iteration,
    NoiseOptimizer,
    NoRegularizer,
    Part,
    PermutationRegularizer,
    Problem,
    Recorder,
    SamplerMap,
    Term,
    Trajectory,
    TrajectoryFileError,
    Typicality,
    coarse_sigmas,
    ddim_steps,
    load_trajectory,
    optimize,
    save_trajectory,
)
from comfyui_dno.dno_core.loop import iteration_key
from comfyui_dno.dno_core.optimizers import clip_per_image
from comfyui_dno.dno_core.trajectories.file import FORMAT

STEPS, FEW = len(SIGMAS) - 1, 2
SETTINGS = steady(0.05, gamma=0.4, clip=0.8)


def problems(mode: GradientMode = GradientMode()) -> tuple[Problem, Problem]:  # noqa: B008
    """In few steps and in all of them, of the same noise."""
    whole = small_problem(denoise=mild_denoiser())
    fine = ddim_steps(SIGMAS, 1.0)
    coarse = ddim_steps(coarse_sigmas(SIGMAS, FEW), 1.0)
    inner = SamplerMap(mild_denoiser(), coarse, start_scaled(), mode)
    few = CoarseMap(inner, Coarsening(fine, coarse))
    return Problem(few, whole.decoder, whole.terms), whole


def run(count: int, full_from: int | None, **options: Any) -> list[Iteration]:
    few, whole = options.pop("problems", None) or problems()
    options = {"seed": 3, "regularizer": PermutationRegularizer(permutations=4)} | options
    z = options.pop("z", None)
    parts = () if full_from is None else (Part(full_from, whole),)
    noise = small_noise() if z is None else z
    quick = Typicality(permutations=5)
    iterations = optimize(few, noise, SETTINGS, typicality=quick, parts=parts, **options)
    return list(islice(iterations, count))


def by_hand(count: int, start: int, optimizer: str) -> list[tuple[Tensor, Tensor]]:
    """The noise and the objective of every iteration, one optimizer all along."""
    few, whole = problems()
    z, found = small_noise(), []
    stepper, regularizer = NoiseOptimizer(optimizer, z), PermutationRegularizer(permutations=4)
    for index in range(count):
        problem = whole if index >= start else few
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        found.append((z, evaluation.objective))
        assert evaluation.image_gradient is not None
        gradient = problem.gradient(z, evaluation, evaluation.image_gradient)
        pull = regularizer.penalty(z, iteration_key(3, index))[1]
        clipped = clip_per_image(gradient - 0.4 * pull, 0.8)[0]
        z = stepper.step(clipped, 0.05)
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("start", [0, 2, 4])
def test_from_its_start_on_the_other_problem_is_climbed_with_noise_and_moments_carried_on(
    start: int, optimizer: str
) -> None:
    its = run(6, start, optimizer=optimizer)
    for one, (z, objective) in zip(its, by_hand(6, start, optimizer), strict=True):
        assert torch.equal(one.z, z) and torch.equal(one.objective, objective), one.index
    assert [one.steps for one in its] == [FEW] * start + [STEPS] * (6 - start)


def test_until_its_start_nothing_is_other_than_without_it() -> None:
    plain, parted = run(5, None), run(5, 3)
    for index in range(3):
        assert torch.equal(plain[index].objective, parted[index].objective)
    assert torch.equal(plain[3].z, parted[3].z), "what the last step of the first part made"
    assert not torch.equal(plain[3].latent, parted[3].latent)
    assert [one.steps for one in plain] == [FEW] * 5


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_continued_in_either_part_it_is_the_uninterrupted_run(cut: int) -> None:
    whole = run(7, 3)
    at = run(cut + 1, 3)[-1]
    rest = run(7 - cut, 3, z=at.z, start=cut, optimizer_state=at.optimizer_state)
    for one, other in zip(rest, whole[cut:], strict=True):
        assert torch.equal(one.z, other.z) and torch.equal(one.objective, other.objective)
        assert (one.index, one.steps) == (other.index, other.steps)


@pytest.mark.parametrize(("start", "checked"), [(0, STEPS), (2, FEW)])
def test_the_gradient_that_is_checked_is_that_of_the_first_iteration(
    start: int, checked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.dno_core import loop

    seen: list[Any] = []
    check = loop.check_gradient

    def checking(problem: Problem, *rest: Any) -> Any:
        seen.append(problem)
        return check(problem, *rest)

    monkeypatch.setattr(loop, "check_gradient", checking)
    run(4, start)
    assert [len(problem.noise_map.steps) for problem in seen] == [checked]


def test_a_mode_of_as_many_steps_as_the_first_part_has_is_exact_there_and_biased_after() -> None:
    mode = GradientMode("spread k", FEW)
    few, whole = problems(mode)
    assert isinstance(whole.noise_map, SamplerMap)
    biased = Problem(whole.noise_map.in_mode(mode), whole.decoder, whole.terms)
    none = NoRegularizer()
    exact = run(4, 2, regularizer=none)
    cheap = run(4, 2, regularizer=none, problems=(few, biased))
    assert torch.equal(exact[2].z, cheap[2].z) and not torch.equal(exact[3].z, cheap[3].z)
    assert all(one.update is None or one.update.cosine is None for one in cheap)
    first = run(2, 0, regularizer=none, problems=(few, biased))[1].update
    assert first is not None and first.cosine is not None


def recorded(
    count: int, full_from: int | None, continues: Trajectory | None = None, **options: Any
) -> Trajectory:
    if continues is not None:
        options |= {"z": continues.last_noise, "start": continues.last}
        options["optimizer_state"] = continues.optimizer_state
    recorder = Recorder(problems()[0].infos, continues=continues)
    for iteration in run(count, full_from, **options):
        recorder.add(iteration, iteration.latent)
    return recorder.finish("asked to")


def test_a_file_says_in_how_many_steps_each_iteration_was_drawn(tmp_path: Path) -> None:
    trajectory = recorded(4, 2)
    save_trajectory(trajectory, tmp_path / "run")
    records = load_trajectory(tmp_path / "run").records
    assert [record.steps for record in records] == [FEW, FEW, STEPS, STEPS]
    assert records == trajectory.records


def rewritten(trajectory: Trajectory, folder: Path, steps: int | None) -> Path:
    """Its file, with another number of steps in the second record; None takes it from them all."""
    file = folder / "run.dno.safetensors"
    save_trajectory(trajectory, file)
    tensors = load_file(file)
    data = json.loads(tensors["run"].numpy().tobytes())
    if steps is None:
        for record in data["records"]:
            del record["steps"]
    else:
        data["records"][1]["steps"] = steps
    tensors["run"] = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
    save_file(tensors, file, {"format": FORMAT, "version": "1"})
    return file


def test_less_than_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryFileError, match="record 1 was sampled in -1 steps"):
        load_trajectory(rewritten(recorded(3, None), tmp_path, -1))


def test_an_older_file_loads_and_its_run_goes_on_as_one_of_those_steps(tmp_path: Path) -> None:
    """Its iterations compete with the new ones, and a last part begins after them."""
    part = recorded(3, None)
    older = load_trajectory(rewritten(part, tmp_path, None))
    assert [record.steps for record in older.records] == [0, 0, 0]
    assert older.best == part.best
    for full_from in (None, 4):
        found, whole = (recorded(4, full_from, continues=each) for each in (older, part))
        assert [record.steps for record in found.records] == [
            record.steps for record in whole.records
        ]
        assert found.best == whole.best and torch.equal(found.best_noise, whole.best_noise)
    assert [record.steps for record in older.records] == [0, 0, 0], "left as it was"
    risen = replace(older.records[0], scores=((99.0, 99.0),))
    best_at_first = replace(older, records=(risen, *older.records[1:]))
    assert recorded(4, None, continues=best_at_first).best == (0, 0)


def test_the_best_is_one_of_those_drawn_in_the_most_steps_with_its_noise() -> None:
    few, whole = problems()
    flattered = (Term(FakeReward(lambda images: wave(images) + 50.0, scale=2.0)),)
    run = recorded(5, 3, problems=(replace(few, terms=flattered), whole))
    assert min(run.best) >= 3 and run.best_noise_at == run.best
    scores = whole.evaluate(run.best_noise, (1.0,)).scores[0]
    expected = [run.records[place].scores[0][image] for image, place in enumerate(run.best)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)
