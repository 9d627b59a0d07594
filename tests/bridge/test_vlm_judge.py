"""A judge in another program: a run climbs by it, and loses nothing when that program fails."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_dno import rewards
from comfyui_dno.dno_core import Hybrid2, Term
from comfyui_dno.rewards.base import RewardUnavailable
from comfyui_dno.rewards.heartbeat import beating
from comfyui_dno.tests.rewards.chat_server import (
    hang,
    hang_up,
    judge_brightness,
    say,
    send,
    serving,
)

from .runs import request


def asked_of(address: str, **changes: Any) -> Any:
    reward = rewards.create(
        "vlm_judge", address=address, question="Is it bright?", timeout=20.0, retries=0
    )
    values = {"iterations": 4, "learning_rate": 0.1, "estimator": Hybrid2(4, 0.1)}
    return request(terms=(Term(reward),), **values | changes)


def test_a_run_climbs_by_a_judge() -> None:
    from comfyui_dno.nodes import optimization

    with serving(judge_brightness) as server:
        trajectory = optimization.run(asked_of(server.address)).trajectory
        questions = len(server.asked)
    first, best = (trajectory.records[at].scores[0][0] for at in (0, trajectory.best[0]))
    assert best > first
    assert trajectory.warnings == () and questions >= 5 + 4 * 4


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (send(500), "HTTP 500"),
        (say("What a picture!"), "cannot be read"),
        (hang_up, "the connection to"),
    ],
    ids=["error", "nonsense", "hang up"],
)
def test_a_judge_that_fails_in_the_middle_ends_the_run_with_the_best(act: Any, word: str) -> None:
    from comfyui_dno.nodes import optimization

    good = [judge_brightness] * 6  # iteration 0 with its probes, iteration 1
    with serving(*good, act) as server:
        result = optimization.run(asked_of(server.address))
    trajectory = result.trajectory
    assert word in trajectory.stop_reason and "iteration" in trajectory.stop_reason
    assert trajectory.stop_reason in trajectory.warnings
    assert len(trajectory.records) == 2
    assert result.image.isfinite().all()


def test_a_judge_that_fails_before_anything_was_won_is_an_error() -> None:
    from comfyui_dno.nodes import optimization

    with serving(send(500)) as server, pytest.raises(RewardUnavailable, match="HTTP 500"):
        optimization.run(asked_of(server.address))


def test_a_cancel_acts_while_the_judge_thinks() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    def press_cancel(handler: Any, question: Any) -> None:
        management.interrupt_current_processing(True)
        hang(handler, question)

    with serving(*[judge_brightness] * 6, press_cancel) as server:
        asked = asked_of(server.address)
        with beating(management.throw_exception_if_processing_interrupted):
            with pytest.raises(management.InterruptProcessingException):
                optimization.run(asked)
        assert server.left.wait(5)
    assert len(server.asked) == 7
