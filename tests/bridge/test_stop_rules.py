"""Stop rules in a run on a ComfyUI model."""

from __future__ import annotations

import dataclasses

import torch

from comfyui_dno import rewards
from comfyui_dno.dno_core import StopChoice, Term, lights_of_run

from .runs import request


def test_a_run_that_got_untypical_ends_and_returns_the_best_typical_picture() -> None:
    from comfyui_dno.nodes import optimization

    hasty = request(iterations=40, learning_rate=0.1, batch=2, stop=StopChoice())
    result = optimization.run(hasty)
    trajectory = result.trajectory
    assert "P(z) left the typical range" in trajectory.stop_reason
    assert len(trajectory.records) < 40
    assert max(trajectory.records[-1].quantile) <= 0.01
    for image, best in enumerate(trajectory.best):
        assert trajectory.records[best].quantile[image] > 0.01
        assert 0 < best < len(trajectory.records) - 1
        assert torch.equal(result.latent["samples"][image], trajectory.latents[best][image])
    assert trajectory.warnings == lights_of_run(trajectory.terms, trajectory.records)
    assert any("P(z) has left" in warning for warning in trajectory.warnings)


def test_a_watched_reward_that_falls_ends_the_run() -> None:
    from comfyui_dno.nodes import optimization

    brightness = rewards.create("brightness")
    terms = (Term(brightness), Term(brightness, goal="minimize", watch=True))
    watching = request(
        terms=terms,
        iterations=40,
        learning_rate=0.1,
        stop=StopChoice(untypical=False, drop=0.02),
    )
    trajectory = optimization.run(watching).trajectory
    assert "the watched reward 'brightness' has fallen" in trajectory.stop_reason
    assert 1 < len(trajectory.records) < 40


def test_a_target_and_a_plateau_end_the_run() -> None:
    from comfyui_dno.dno_core import after_iterations
    from comfyui_dno.nodes import optimization

    plain = optimization.run(request(iterations=4, learning_rate=0.05)).trajectory
    assert plain.stop_reason == after_iterations(4)(plain.records)
    middle = plain.records[2].scores[0][0]
    target = StopChoice(untypical=False, watched_falls=False, target=middle)
    reached = optimization.run(request(iterations=4, learning_rate=0.05, stop=target)).trajectory
    assert len(reached.records) == 3
    assert reached.stop_reason == f"'brightness' has reached its target of {middle:g}"
    still = StopChoice(untypical=False, watched_falls=False, plateau=2, min_gain=0.0)
    stalled = optimization.run(request(iterations=9, learning_rate=0.0, stop=still)).trajectory
    assert len(stalled.records) == 3
    assert stalled.stop_reason == "no gain above 0 in 2 iterations"


def test_a_time_limit_counts_only_what_was_done_since_the_resume() -> None:
    from comfyui_dno.nodes import optimization

    asked = request(iterations=2)
    first = optimization.run(asked).trajectory
    spent = sum(record.seconds for record in first.records)
    late = dataclasses.replace(asked, resume=first, iterations=4, time_limit=spent * 1e-6)
    resumed = optimization.run(late).trajectory
    assert len(resumed.records) == 4, "one new iteration, and then its time was up"
    assert "spent" in resumed.stop_reason
