"""The loop: records, live settings, batches, resuming, failing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_models import FakeReward, red, small_noise, small_problem, steady, wave
from torch import Tensor

from comfyui_dno.dno_core import (
    Iteration,
    NoiseOptimizer,
    NonFinite,
    NoRegularizer,
    PermutationRegularizer,
    Settings,
    Term,
    Typicality,
    optimize,
)
from comfyui_dno.dno_core.loop import iteration_key
from comfyui_dno.dno_core.optimizers import clip_per_image

QUICK = Typicality(permutations=5)


def run(
    count: int,
    z: Tensor | None = None,
    settings: Callable[[int], Settings] | None = None,
    **options: Any,
) -> list[Iteration]:
    """The first `count` iterations, without the self-check unless asked for."""
    options = {"seed": 7, "typicality": QUICK, "check_tolerance": None} | options
    problem = options.pop("problem", None) or small_problem()
    noise = small_noise() if z is None else z
    going = optimize(problem, noise, settings or steady(), **options)
    return list(itertools.islice(going, count))


def test_the_objective_rises() -> None:
    its = run(15, regularizer=NoRegularizer())
    assert bool((its[-1].objective > its[0].objective + 1).all())


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "unit"])
def test_a_batch_of_two_is_two_batches_of_one(optimizer: str) -> None:
    """Gradients, moments, clip and penalty: no image knows of the other."""
    z = small_noise(2)
    z[:, 1] *= 1.6  # one image's penalty is awake, its gradient larger
    regularizer = PermutationRegularizer(permutations=6)
    options: dict[str, Any] = {"optimizer": optimizer, "regularizer": regularizer}
    settings = steady(learning_rate=0.02, gamma=0.5, clip=0.7)
    both = run(5, z, settings, **options)
    for image in range(2):
        alone = run(5, z[:, image : image + 1].clone(), settings, **options)
        for a, b in zip(alone, both, strict=True):
            assert torch.allclose(a.z[:, 0], b.z[:, image], atol=2e-6)
            assert a.objective[0].item() == pytest.approx(b.objective[image].item(), abs=1e-4)
            assert a.typicality.log_p[0].item() == pytest.approx(
                b.typicality.log_p[image].item(), abs=1e-4
            )
            if a.update is not None and b.update is not None:
                for field in ("gradient_norm", "penalty"):
                    one, other = getattr(a.update, field)[0], getattr(b.update, field)[image]
                    assert one.item() == pytest.approx(other.item(), rel=1e-3, abs=1e-6)


def test_inputs_and_yielded_iterations_are_never_changed_later() -> None:
    z = small_noise()
    before = z.clone()
    kept = []
    for it in itertools.islice(
        optimize(small_problem(), z, steady(0.1), seed=0, typicality=QUICK), 4
    ):
        kept.append((it, it.z.clone(), it.image.clone(), it.latent.clone(), flat(it)))
    assert torch.equal(z, before) and not z.requires_grad
    for it, noise, image, latent, state in kept:
        assert torch.equal(it.z, noise) and torch.equal(it.image, image)
        assert torch.equal(it.latent, latent)
        assert all(torch.equal(a, b) for a, b in zip(flat(it), state, strict=True))
    assert not torch.equal(kept[0][1], kept[1][1])


def flat(it: Iteration) -> list[Tensor]:
    """Copies of the tensors in an optimizer's state."""
    return [value.clone() for value in it.optimizer_state.values()]


def test_an_iteration_holds_what_came_out_of_its_noise() -> None:
    terms = (Term(FakeReward(wave, scale=2.0)), Term(FakeReward(red), watch=True))
    problem = small_problem(terms=terms)
    its = run(3, settings=steady(weights=(1.0, 0.0)), problem=problem)
    for index, it in enumerate(its):
        again = problem.evaluate(it.z, (1.0, 0.0))
        assert it.index == index
        assert torch.equal(it.latent, again.path.final) and torch.equal(it.image, again.image)
        assert torch.equal(it.scores, torch.stack([wave(it.image), red(it.image)]))
        assert torch.allclose(it.objective, it.scores[0] / 2)
        assert torch.equal(it.typicality.log_p, QUICK(it.z).log_p)
        assert it.z.dtype == it.scores.dtype == torch.float32
        assert it.seconds > 0
        assert (it.update is None) == (index == 0)
        assert not any(t.requires_grad for t in (it.z, it.latent, it.image, it.scores))


def test_the_recorded_gradient_norm_is_that_before_the_clip_with_the_regularizer() -> None:
    problem, z = small_problem(), small_noise() * 1.5
    regularizer = PermutationRegularizer(permutations=6)
    its = run(2, z, steady(gamma=0.8, clip=0.1), problem=problem, regularizer=regularizer)
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    assert evaluation.image_gradient is not None
    penalty, pull = regularizer.penalty(z, iteration_key(7, 0))
    gradient = problem.gradient(z, evaluation, evaluation.image_gradient) - 0.8 * pull
    assert its[1].update is not None and bool(pull.any())
    assert torch.allclose(
        its[1].update.gradient_norm, gradient.movedim(1, 0).flatten(1).norm(dim=1)
    )
    assert torch.equal(its[1].update.penalty, penalty)


def test_settings_changed_while_it_runs_take_effect_at_the_next_iteration() -> None:
    terms = (Term(FakeReward(wave)), Term(FakeReward(red)))
    now = {"settings": Settings(0.05, 0.0, (1.0, 0.0))}
    asked = []

    def settings_at(index: int) -> Settings:
        asked.append(index)
        return now["settings"]

    going = optimize(
        small_problem(terms=terms),
        small_noise(),
        settings_at,
        seed=0,
        typicality=QUICK,
        regularizer=NoRegularizer(),
    )
    first = next(going)
    now["settings"] = Settings(0.0, 0.0, (0.0, 2.0))
    second, third = next(going), next(going)
    assert asked == [0, 1, 2]
    assert torch.allclose(first.objective, first.scores[0])
    assert first.settings.learning_rate == 0.05, "the step after iteration 0 is its own"
    assert not torch.equal(second.z, first.z)
    assert torch.allclose(second.objective, 2 * second.scores[1])
    assert torch.equal(third.z, second.z), "learning rate 0: it stays where it is"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(optimizer: str) -> None:
    def changing(index: int) -> Settings:
        return Settings(0.05 + 0.01 * index, 0.3, (1.0,), clip=0.5)

    options: dict[str, Any] = {
        "optimizer": optimizer,
        "regularizer": PermutationRegularizer(permutations=4),
        "check_tolerance": 5.0,
    }
    whole = run(7, settings=changing, **options)
    cut = run(4, settings=changing, **options)[-1]
    rest = run(4, cut.z, changing, start=3, optimizer_state=cut.optimizer_state, **options)
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.index == b.index
        assert torch.equal(a.z, b.z) and torch.equal(a.image, b.image)
        assert torch.equal(a.objective, b.objective)
        assert all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))
    assert torch.equal(whole[5].update.penalty, rest[2].update.penalty)  # type: ignore[union-attr]


def test_the_regularizers_permutations_differ_by_iteration_and_by_seed_only() -> None:
    def still(index: int) -> Settings:
        return Settings(0.0, 1.0, (1.0,))

    def penalties(seed: int) -> list[float]:
        z = small_noise(1) * 1.3
        options: dict[str, Any] = {"regularizer": PermutationRegularizer(permutations=3)}
        its = run(4, z, still, seed=seed, **options)
        return [it.update.penalty.item() for it in its if it.update is not None]

    assert penalties(0) == penalties(0)
    assert len({*penalties(0), *penalties(1), *penalties(2**63)}) == 9


@pytest.mark.parametrize("where", ["image", "score", "gradient"])
def test_a_nan_at_iteration_k_ends_the_run_and_leaves_the_earlier_records(where: str) -> None:
    calls = {"decode": 0, "score": 0}

    def reward(images: Tensor) -> Tensor:
        calls["score"] += 1
        if where == "score" and calls["score"] == 3:
            return red(images) * float("nan")
        if where == "gradient" and calls["score"] == 3:
            return red(images) + torch.sqrt((images - images.detach()).abs()).flatten(1).sum(1)
        return red(images)

    class Decoder:
        def decode(self, x: Tensor) -> Tensor:
            calls["decode"] += 1
            image = plain.decoder.decode(x)
            return image * float("nan") if where == "image" and calls["decode"] == 3 else image

        def pull(self, x: Tensor, v: Tensor) -> Tensor:
            return plain.decoder.pull(x, v)

    plain = small_problem(terms=(Term(FakeReward(reward)),))
    seen = []
    with pytest.raises(NonFinite):
        options: dict[str, Any] = {"seed": 0, "typicality": QUICK, "check_tolerance": None}
        for it in optimize(replace(plain, decoder=Decoder()), small_noise(), steady(), **options):
            seen.append(it)
    assert [it.index for it in seen] == ([0, 1, 2] if where == "gradient" else [0, 1])
    assert all(bool(torch.isfinite(it.objective).all()) for it in seen)


def test_a_zero_gradient_leaves_the_noise_bit_equal_under_adam() -> None:
    """No weight decay, which would by itself shrink the noise out of the typical set."""
    z = small_noise()
    for name in ("adam", "sgd"):
        stepper = NoiseOptimizer(name, z)
        for _ in range(3):
            moved = stepper.step(torch.zeros_like(z), 0.1)
        assert torch.equal(moved, z)


def test_adam_is_its_closed_form() -> None:
    z, grads = small_noise(), [small_noise(seed=s) for s in (1, 2, 3)]
    stepper = NoiseOptimizer("adam", z)
    m = v = torch.zeros_like(z)
    expected = z.clone()
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected = expected + 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        assert torch.allclose(stepper.step(g, 0.01), expected, atol=1e-6)


def test_sgd_is_nesterov_momentum_0_9() -> None:
    z, (g1, g2, g3) = small_noise(), [small_noise(seed=s) for s in (1, 2, 3)]
    stepper = NoiseOptimizer("sgd", z)
    one = z + 0.1 * 1.9 * g1
    two = one + 0.1 * (1.9 * g2 + 0.81 * g1)
    three = two + 0.2 * (1.9 * g3 + 0.81 * g2 + 0.729 * g1)
    assert torch.allclose(stepper.step(g1, 0.1), one, atol=1e-6)
    assert torch.allclose(stepper.step(g2, 0.1), two, atol=1e-6)
    assert torch.allclose(stepper.step(g3, 0.2), three, atol=1e-6), "a new rate acts at once"


def test_the_clip_shortens_every_image_to_its_own_limit() -> None:
    gradient = small_noise(3)
    gradient[:, 1] *= 1e-4
    gradient[:, 2] = 0
    clipped, norm = clip_per_image(gradient, 1.0)
    after = clipped.movedim(1, 0).flatten(1).norm(dim=1)
    assert after.tolist() == pytest.approx([1.0, norm[1].item(), 0.0])
    assert torch.equal(clipped[:, 1:], gradient[:, 1:])
    assert torch.allclose(clipped[:, 0], gradient[:, 0] / norm[0])
    assert torch.equal(clip_per_image(gradient, 0.0)[0], gradient), "0 is no clip"


def test_an_unknown_optimizer_is_refused_before_the_first_forward() -> None:
    with pytest.raises(ValueError, match="'adamw'"):
        run(1, optimizer="adamw")


def test_pauses_of_the_caller_do_not_count_as_seconds() -> None:
    going = optimize(small_problem(), small_noise(), steady(), seed=0, typicality=QUICK)
    next(going)
    time.sleep(1.5)
    assert next(going).seconds < 1.2
