"""A run that was stopped and goes on is the run that was never stopped."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_models import (
    FakeReward,
    conv_denoiser,
    decode_smoothly,
    red,
    small_noise,
    small_problem,
    steady,
    wave,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    OPTIMIZERS,
    GradientEstimator,
    Hybrid1,
    Hybrid2,
    NormRegularizer,
    NotTheSameRun,
    PermutationRegularizer,
    Problem,
    Recorder,
    Regularizer,
    Settings,
    SpectralWhitening,
    SphereProjection,
    Term,
    Trajectory,
    Typicality,
    ZoSgd,
    load_trajectory,
    optimize,
    save_trajectory,
)
from comfyui_dno.dno_core.trajectories.continuation import require_same_shape

TERMS = (Term(FakeReward(wave, name="wave", scale=2.0)), Term(FakeReward(red, "red"), watch=True))


def climbed(
    last: int,
    earlier: Trajectory | None = None,
    *,
    problem: Problem | None = None,
    optimizer: str = "adam",
    settings: Callable[[int], Settings] = steady(0.1, gamma=0.5, weights=(1.0, 0.0)),  # noqa: B008
    estimator: GradientEstimator | None = None,
    regularizer: Regularizer = PermutationRegularizer(permutations=4),  # noqa: B008
    **options: Any,
) -> Trajectory:
    """Up to iteration `last`, from the beginning or from where `earlier` ended."""
    problem = problem or small_problem(terms=TERMS)
    recorder = Recorder(problem.infos, continues=earlier, **options)
    begun = {} if earlier is None else {"start": earlier.last, "check_tolerance": None}
    iterations = optimize(
        problem,
        small_noise() if earlier is None else earlier.last_noise,
        settings,
        seed=3,
        optimizer=optimizer,
        estimator=estimator,
        regularizer=regularizer,
        typicality=Typicality(permutations=5),
        optimizer_state=None if earlier is None else earlier.optimizer_state,
        **begun,
    )
    for iteration in iterations:
        recorder.add(iteration, iteration.latent * 2)
        if iteration.index == last:
            break
    return recorder.finish("asked to", meta={"seed": 3})


def assert_equal(a: Trajectory, b: Trajectory) -> None:
    """To the bit in everything but the seconds."""
    strip = [[dataclasses.replace(r, seconds=0.0) for r in run.records] for run in (a, b)]
    assert strip[0] == strip[1]
    for name in ("terms", "best", "best_noise_at", "stop_reason", "meta"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("best_noise", "last_noise"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.optimizer_state.keys() == b.optimizer_state.keys()
    for name, value in a.optimizer_state.items():
        assert torch.equal(value, b.optimizer_state[name]), name
    assert len(a.records) == len(a.latents) == len(b.latents) == len(b.images)
    for index in range(len(a.records)):
        assert torch.equal(a.latents[index], b.latents[index])
        assert torch.equal(a.images[index], b.images[index])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    optimizer: str, cut: int, tmp_path: Path
) -> None:
    whole = climbed(6, optimizer=optimizer)
    assert max(whole.best) > cut
    part = climbed(cut, optimizer=optimizer)
    assert_equal(climbed(6, part, optimizer=optimizer), whole)
    save_trajectory(part, tmp_path / "run")
    assert_equal(climbed(6, load_trajectory(tmp_path / "run"), optimizer=optimizer), whole)


@pytest.mark.parametrize(
    "parts",
    [
        {"estimator": ZoSgd(probes=4)},
        {"estimator": Hybrid1(probes=4)},
        {"estimator": Hybrid2(probes=4)},
        {"regularizer": PermutationRegularizer(permutations=4, family="uniform")},
        {"regularizer": NormRegularizer()},
        {"regularizer": SphereProjection()},
        {"regularizer": SpectralWhitening(target="step", blocks=1)},
        {"regularizer": SpectralWhitening(target="gradient", blocks=1)},
    ],
    ids=repr,
)
def test_so_it_does_with_every_estimator_and_regularizer(parts: dict[str, Any]) -> None:
    assert_equal(climbed(4, climbed(2, **parts), **parts), climbed(4, **parts))


def test_a_run_may_be_resumed_again_and_again() -> None:
    run = climbed(1)
    for last in (2, 3, 5):
        run = climbed(last, run)
    assert_equal(run, climbed(5))


def test_a_schedule_goes_on_where_it_was() -> None:
    def falling(index: int) -> Settings:
        return Settings(0.2 / (1 + index), 0.5, (1.0, 0.0))

    assert_equal(
        climbed(5, climbed(2, settings=falling), settings=falling), climbed(5, settings=falling)
    )


def test_the_best_of_the_earlier_run_stays_with_its_noise() -> None:
    part = climbed(3)
    wild = climbed(6, part, settings=steady(50.0, weights=(1.0, 0.0)))
    assert wild.best == part.best, "what follows is thrown far off"
    assert torch.equal(wild.best_noise, part.best_noise) and wild.best_noise_at == part.best


def test_the_earlier_run_is_not_changed() -> None:
    part = climbed(3)
    records, frames = part.records, [part.images[i] for i in range(4)]
    tensors = [part.last_noise, part.best_noise, *part.optimizer_state.values()]
    copies = [tensor.clone() for tensor in tensors]
    climbed(6, part, settings=steady(0.5, weights=(2.0, 0.0)))
    assert part.records == records and len(part.images) == len(part.latents) == 4
    assert all(torch.equal(part.images[i], frame) for i, frame in enumerate(frames))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert_equal(climbed(6, part), climbed(6))


def test_new_weights_hold_from_the_next_step_on() -> None:
    other = steady(0.1, gamma=0.5, weights=(1.0, 0.5))
    run = climbed(4, climbed(2), settings=other)
    assert [record.settings.weights[1] for record in run.records] == [0.0, 0.0, 0.5, 0.5, 0.5]


def test_frames_in_files_live_as_long_as_a_run_that_needs_them(tmp_path: Path) -> None:
    part = climbed(3, byte_cap=0, folder=tmp_path)
    run = climbed(5, part, byte_cap=0, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * 6, "shared, not copied"
    del part
    gc.collect()
    assert_equal(run, climbed(5))
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_memory_cap_counts_the_frames_that_are_there_already(tmp_path: Path) -> None:
    part = climbed(3)
    run = climbed(4, part, byte_cap=4 * part.images[0].numel(), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert_equal(run, climbed(4))


def test_a_run_that_fails_at_once_still_has_all_of_the_earlier_one() -> None:
    part = climbed(3)
    recorder = Recorder(tuple(term.info for term in TERMS), continues=part)
    assert_equal(recorder.finish("asked to", meta={"seed": 3}), part)


def other_problem(**changes: Any) -> Problem:
    values = {"denoise": conv_denoiser(torch.float32), "terms": TERMS, **changes}
    return small_problem(**values)


def test_another_model_is_noticed_at_the_first_evaluation() -> None:
    with pytest.raises(NotTheSameRun, match="Iteration 2 .* latent differs by .* model, LoRA"):
        climbed(4, climbed(2), problem=other_problem(denoise=conv_denoiser(torch.float32, cfg=4.0)))


def test_another_vae_is_noticed() -> None:
    def darker(x: Tensor) -> Tensor:
        return decode_smoothly(x) - 0.05

    with pytest.raises(NotTheSameRun, match="latent is the same and the image .* VAE"):
        climbed(4, climbed(2), problem=other_problem(decode=darker))


def test_another_vae_of_another_size_is_noticed() -> None:
    def smaller(x: Tensor) -> Tensor:
        return decode_smoothly(x)[..., ::2, ::2]

    with pytest.raises(NotTheSameRun, match="its image is of size .* VAE"):
        climbed(4, climbed(2), problem=other_problem(decode=smaller))


def test_a_reward_that_scores_differently_under_the_same_name_is_noticed() -> None:
    shifted = FakeReward(lambda images: wave(images) + 0.2, name="wave", scale=2.0)
    with pytest.raises(NotTheSameRun, match="image is the same and the reward 'wave' .* by 0.2"):
        climbed(4, climbed(2), problem=other_problem(terms=(Term(shifted), TERMS[1])))


def test_a_difference_in_one_image_of_the_batch_is_enough() -> None:
    def second_differs(images: Tensor) -> Tensor:
        return wave(images) + torch.tensor([0.0, 0.2])

    reward = FakeReward(second_differs, name="wave", scale=2.0)
    with pytest.raises(NotTheSameRun, match="'wave'"):
        climbed(4, climbed(2), problem=other_problem(terms=(Term(reward), TERMS[1])))


def test_the_rounding_of_another_machine_is_let_pass() -> None:
    def rounded(x: Tensor) -> Tensor:
        return decode_smoothly(x) * (1 + 1e-4)

    run = climbed(4, climbed(2), problem=other_problem(decode=rounded))
    assert len(run.records) == 5


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ((TERMS[0],), "scored by 'wave', 'red' and this one has 'wave'"),
        ((TERMS[1], TERMS[0]), "same rewards in the same order"),
        ((dataclasses.replace(TERMS[0], goal="minimize"), TERMS[1]), "goal of the reward 'wave'"),
        ((dataclasses.replace(TERMS[0], target=2.0), TERMS[1]), "target of the reward 'wave'"),
        ((Term(FakeReward(wave, "wave", scale=3.0)), TERMS[1]), "was 2.0 .* and is 3.0 here"),
    ],
)
def test_other_rewards_are_refused_before_anything_runs(terms: tuple[Term, ...], said: str) -> None:
    with pytest.raises(NotTheSameRun, match=said):
        Recorder(tuple(term.info for term in terms), continues=climbed(1))


def test_weight_and_watch_only_may_change() -> None:
    terms = (dataclasses.replace(TERMS[0], weight=3.0), dataclasses.replace(TERMS[1], watch=False))
    run = climbed(3, climbed(1), problem=other_problem(terms=terms))
    assert run.terms[0].weight == 3.0 and not run.terms[1].watch


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((5, 2, 2, 4, 4), None),
        ((4, 2, 2, 4, 4), "5 noise tensors .steps, eta. and this one 4"),
        ((5, 3, 2, 4, 4), "2 images .batch size. and this one 3"),
        ((5, 2, 2, 4, 8), "4 columns and this one 8"),
        ((5, 2, 2, 4), "shape"),
    ],
)
def test_noise_of_another_shape_is_named(shape: tuple[int, ...], said: str | None) -> None:
    before = torch.zeros(5, 2, 2, 4, 4)
    if said is None:
        return require_same_shape(before, torch.zeros(shape))
    with pytest.raises(NotTheSameRun, match=said):
        require_same_shape(before, torch.zeros(shape))


def test_another_optimizers_state_is_refused() -> None:
    with pytest.raises(ValueError, match="moments do not fit 'sgd'"):
        climbed(4, climbed(2), optimizer="sgd")


def test_moments_of_another_size_are_refused() -> None:
    part = climbed(2)
    cut = {
        name: value[:, :1] if value.ndim else value for name, value in part.optimizer_state.items()
    }
    with pytest.raises(ValueError, match="on noise of shape"):
        climbed(4, dataclasses.replace(part, optimizer_state=cut))


def test_a_run_that_begins_elsewhere_is_refused() -> None:
    part = climbed(2)
    problem = small_problem(terms=TERMS)
    recorder = Recorder(problem.infos, continues=part)
    settings = steady(0.1, weights=(1.0, 0.0))
    iterations = optimize(problem, part.last_noise, settings, seed=3, check_tolerance=None)
    (first,) = itertools.islice(iterations, 1)
    with pytest.raises(ValueError, match="ended with iteration 2 and this one begins with"):
        recorder.add(first, first.latent)
