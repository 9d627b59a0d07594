"""The learning rate over a run equals torch's own schedulers, value for value."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from comfyui_dno.dno_core import learning_rate_at

BASE = 0.03


def of_torch(warmup: int, horizon: int, decay: str) -> list[float]:
    """LinearLR from 1 / (w + 1), then ConstantLR or CosineAnnealingLR, one after another."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    if decay == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon - warmup)
    else:
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        main = lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])
    found = []
    for _ in range(horizon + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        main.step()
    return found


@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize(("warmup", "horizon"), [(0, 10), (1, 10), (4, 20), (9, 10), (0, 1)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_equals_torchs_schedulers(warmup: int, horizon: int, decay: str) -> None:
    ours = [learning_rate_at(i, BASE, warmup, horizon, decay) for i in range(horizon + 1)]
    assert ours == pytest.approx(of_torch(warmup, horizon, decay), rel=1e-9, abs=1e-12)


def test_without_warm_up_and_decay_it_is_the_same_number_always() -> None:
    assert {learning_rate_at(i, BASE) for i in (0, 1, 10_000)} == {BASE}


def test_the_first_step_of_a_warm_up_moves_and_the_one_after_it_is_whole() -> None:
    rates = [learning_rate_at(i, 1.0, warmup=3, horizon=10) for i in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_cosine_is_used_up_at_the_horizon_and_stays_so() -> None:
    rates = [learning_rate_at(i, 1.0, 0, 8, "cosine") for i in range(12)]
    assert rates[4] == pytest.approx(0.5)
    assert rates[7] > 0
    assert rates[8:] == [0.0] * 4


@pytest.mark.parametrize("horizon", [0, 2, 5])
def test_a_warm_up_longer_than_the_run_is_only_a_warm_up(horizon: int) -> None:
    rates = [learning_rate_at(i, 1.0, 5, horizon, "cosine") for i in range(7)]
    assert rates == [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrong", [{"decay": "linear"}, {"warmup": -1}, {"horizon": -1}, {"index": -1}]
)
def test_nonsense_is_refused_in_two_sentences(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as error:
        learning_rate_at(**({"index": 0, "base": 1.0} | wrong))  # type: ignore[arg-type]
    assert str(error.value).count(". ") == 1
