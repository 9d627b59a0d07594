"""Stop rules: when each speaks, for one image, for a batch, after a resume, as weights move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from comfyui_dno.dno_core import (
    TYPICAL,
    Record,
    Settings,
    StopChoice,
    StopRule,
    TermInfo,
    after_iterations,
    after_seconds,
    at_target,
    best_iterations,
    first_reason,
    on_plateau,
    when_untypical,
    when_watched_falls,
)

WAVE = TermInfo("wave", "units", 2.0, "maximize", 0.0, 1.0, False)
JUDGE = TermInfo("judge", "points", 0.5, "maximize", 0.0, 1.0, True)


def records(
    *scores: Sequence[Sequence[float]],
    quantiles: Sequence[Sequence[float]] | None = None,
    weights: Sequence[float] | None = None,
    start: int = 0,
    seconds: float = 1.0,
) -> list[Record]:
    """`scores`: for every term a row an iteration of one score an image."""
    count, batch = len(scores[0]), len(scores[0][0])
    weights = weights or (1.0, *[0.0] * (len(scores) - 1))
    return [
        Record(
            index=start + i,
            scores=tuple(tuple(float(s) for s in term[i]) for term in scores),
            log_p=(-1.0,) * batch,
            quantile=tuple(quantiles[i]) if quantiles else (0.5,) * batch,
            saturated=(0.0,) * batch,
            gradient_norm=None,
            penalty=None,
            noise_rms=(1.0,) * batch,
            settings=Settings(0.01, 1.0, tuple(weights)),
            seconds=seconds,
        )
        for i in range(count)
    ]


def single(*values: float) -> list[list[float]]:
    return [[value] for value in values]


def in_steps(run: list[Record], *steps: int) -> list[Record]:
    """The same run, every iteration drawn in so many sampling steps."""
    return [replace(record, steps=count) for record, count in zip(run, steps, strict=True)]


def reweighted(run: list[Record], weights: Sequence[float]) -> list[Record]:
    """The same run, in which the weights were moved before its last iteration."""
    return [*run[:-1], replace(run[-1], settings=Settings(0.01, 1.0, tuple(weights)))]


def fires_at(rule: StopRule, run: Sequence[Record]) -> int | None:
    """The index of the iteration after which the rule first has a reason."""
    for count in range(1, len(run) + 1):
        if rule(run[:count]) is not None:
            return run[count - 1].index
    return None


def test_iterations_count_the_whole_run_and_seconds_what_is_new() -> None:
    run = records(single(0, 0, 0, 0), start=10, seconds=4.0)
    assert fires_at(after_iterations(12), run) == 12
    assert fires_at(after_iterations(14), run) is None
    assert fires_at(after_seconds(8.0), run) == 11
    assert fires_at(after_seconds(8.0, start=12), run) == 13, "only what this run has done"
    assert after_seconds(8.0)(run) == "16 s spent of 8 s"


@pytest.mark.parametrize(
    ("goal", "scores", "score", "at"),
    [
        ("maximize", (0.0, 0.6, 0.7, 0.8), 0.7, 2),
        ("maximize", (0.0, 0.1, 0.2, 0.3), 0.7, None),
        ("minimize", (5.0, 4.0, 3.0, 2.0), 3.0, 2),
        ("minimize", (5.0, 6.0, 7.0, 8.0), 3.0, None),
        ("target", (0.0, 0.5, 0.95, 1.0), 1.0, 2),
        ("target", (3.0, 1.5, 1.08, 1.0), 1.0, 2),
        ("target", (0.0, 0.5, 0.89, 0.89), 1.0, None),
        ("target", (5.0, 2.7, 1.4, 1.0), 1.5, 2),
    ],
)
def test_a_target_is_reached_by_the_goal_of_the_term(
    goal: str, scores: tuple[float, ...], score: float, at: int | None
) -> None:
    term = replace(WAVE, goal=goal, target=1.0)
    assert fires_at(at_target([term], score), records(single(*scores))) == at


def test_a_target_within_the_tolerance_is_reached_only_where_a_target_is_the_goal() -> None:
    run = records(single(0.0, 0.95))
    assert at_target([replace(WAVE, goal="target", target=1.0)], 1.0)(run) is not None
    assert at_target([replace(WAVE, goal="target", target=1.0)], 1.0, tolerance=0.01)(run) is None
    assert at_target([WAVE], 1.0, tolerance=0.5)(run) is None


def test_every_image_must_have_reached_the_target_each_in_its_own_time() -> None:
    run = records([[0, 0], [2, 0], [0, 0], [0, 2], [0, 0]])
    assert fires_at(at_target([WAVE], 1.5), run) == 3


def test_an_untypical_iteration_reaches_no_target() -> None:
    run = records(single(0, 9, 2), quantiles=single(0.5, 0.001, 0.5))
    assert fires_at(at_target([WAVE], 1.5), run) == 2
    assert fires_at(at_target([WAVE], 5.0), run) is None


def test_the_first_picture_may_reach_the_target_already() -> None:
    assert fires_at(at_target([WAVE], 0.5), records(single(0.6), quantiles=single(0.0))) == 0


def test_the_target_is_that_of_what_the_run_would_return() -> None:
    """The best of a mix need not be the one in which this term was highest."""
    other = replace(JUDGE, watch=False)
    run = records(single(0, 3, 1), single(0, 0, 9), weights=(1.0, 1.0))
    assert at_target([WAVE, other], 2.0)(run[:2]) is not None
    assert best_iterations([WAVE, other], run) == (2,)
    assert at_target([WAVE, other], 2.0)(run) is None
    moved = reweighted(run, (1.0, 0.0))
    assert at_target([WAVE, other], 2.0)(moved) is not None


def test_the_target_is_for_the_first_optimized_term_or_the_one_that_is_named() -> None:
    run = records(single(0, 1), single(0, 5))
    terms = [replace(JUDGE, name="seen"), WAVE]
    assert "'wave'" in str(at_target(terms, 5.0)(reweighted(run, (0.0, 1.0))))
    assert "'seen'" in str(at_target(terms, 0.0, "seen")(run))
    assert "'seen'" in str(at_target(terms, 0.0, 0)(run))
    assert at_target(terms, 6.0)(run) is None


def test_a_plateau_is_no_gain_of_the_best_within_its_patience() -> None:
    run = records(single(0, 1, 2, 2, 1, 2, 2))
    assert fires_at(on_plateau([WAVE], 2), run) == 4
    assert fires_at(on_plateau([WAVE], 3), run) == 5
    assert fires_at(on_plateau([WAVE], 6), run) is None
    assert on_plateau([WAVE], 3)(run) == "no gain above 0 in 3 iterations"


def test_a_plateaus_gain_is_in_scales_of_the_reward() -> None:
    slow = records(single(0, 0.5, 1.0, 1.5, 2.0, 2.5))  # a quarter of a scale each
    assert fires_at(on_plateau([WAVE], 1, 0.25), slow) == 1
    assert fires_at(on_plateau([WAVE], 1, 0.24), slow) is None
    assert fires_at(on_plateau([WAVE], 2, 0.5), slow) == 2


def test_a_plateau_of_one_image_does_not_stop_the_other() -> None:
    run = records([[0, 0], [0, 1], [0, 2], [0, 2], [0, 2]])
    assert fires_at(on_plateau([WAVE], 2), run) == 4
    climbing = records([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4]])
    assert fires_at(on_plateau([WAVE], 2), climbing) is None


def test_gains_of_untypical_noise_are_none() -> None:
    run = records(single(0, 1, 2, 3, 4), quantiles=single(0.5, 0.5, 0.01, 0.01, 0.01))
    assert fires_at(on_plateau([WAVE], 2), run) == 3


def test_both_ends_of_a_plateau_are_judged_by_the_current_weights() -> None:
    other = replace(JUDGE, watch=False)
    run = records(single(0, 2, 4, 6), single(3, 2, 1, 0), weights=(1.0, 0.0))
    assert on_plateau([WAVE, other], 2)(run) is None
    assert on_plateau([WAVE, other], 2)(reweighted(run, (0.0, 1.0))) is not None


def test_a_plateau_is_looked_for_among_iterations_drawn_in_as_many_steps_as_the_last() -> None:
    run = records(single(0, 1, 2, 2, 1, 1.5, 1.5, 1.5))
    assert fires_at(on_plateau([WAVE], 2), in_steps(run, *[2] * 4, *[5] * 4)) == 7
    assert fires_at(on_plateau([WAVE], 2), run) == 4, "else they would be held against the others"


def test_untypical_noise_ends_the_run_and_the_best_typical_iteration_stays_the_best() -> None:
    run = records(single(0, 1, 2, 3), quantiles=single(0.5, 0.4, TYPICAL, 0.0))
    assert fires_at(when_untypical(), run) == 2, "the limit itself is outside"
    assert when_untypical()(run[:3]) == "P(z) left the typical range at iteration 2"
    assert best_iterations([WAVE], run[:3]) == (1,)
    assert fires_at(when_untypical(quantile=0.45), run) == 1


def test_one_steps_noise_may_leave_the_range_by_itself() -> None:
    run = records([[i, i] for i in range(4)])
    lows = [(0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.01, 0.0)]
    stepwise = [replace(record, step_low=low) for record, low in zip(run, lows, strict=True)]
    assert fires_at(when_untypical(), run) is None
    assert fires_at(when_untypical(), stepwise) == 3


def test_patience_lets_the_noise_come_back() -> None:
    away = single(0.5, 0.0, 0.5, 0.0, 0.0, 0.5)
    run = records(single(*range(6)), quantiles=away)
    assert fires_at(when_untypical(patience=1), run) == 1
    assert fires_at(when_untypical(patience=2), run) == 4
    assert "iteration 3" in str(when_untypical(patience=2)(run[:5]))
    assert fires_at(when_untypical(patience=3), run) is None


def test_a_seed_that_starts_outside_has_not_left_the_range() -> None:
    run = records(single(*range(4)), quantiles=single(0.005, 0.0, 0.0, 0.0))
    assert fires_at(when_untypical(), run) is None
    back = records(single(*range(4)), quantiles=single(0.005, 0.3, 0.005, 0.0))
    assert fires_at(when_untypical(), back) == 2
    beside_a_typical_one = [(0.005, 0.5), (0.0, 0.5), (0.0, 0.005)]
    run = records([[i, i] for i in range(3)], quantiles=beside_a_typical_one)
    assert fires_at(when_untypical(), run) == 2


def test_one_image_outside_does_not_end_the_climb_of_the_other() -> None:
    quantiles = [(0.5, 0.5), (0.0, 0.5), (0.0, 0.5), (0.0, 0.0)]
    run = records([[i, i] for i in range(4)], quantiles=quantiles)
    assert fires_at(when_untypical(), run) == 3


def test_a_watched_reward_below_its_peak_ends_the_run() -> None:
    run = records(single(0, 1, 2, 3, 4), single(1.0, 1.2, 1.0, 0.75, 0.65))
    rule = when_watched_falls([WAVE, JUDGE])
    assert fires_at(rule, run) == 4, "more than its scale of 0.5 below 1.2"
    assert rule(run) == "the watched reward 'judge' has fallen while the optimized one rose"
    assert fires_at(when_watched_falls([WAVE, JUDGE], drop=0.5), run) == 3
    assert fires_at(when_watched_falls([WAVE, JUDGE], drop=2.0), run) is None


def test_a_watched_reward_that_is_better_when_lower_falls_upwards() -> None:
    minimized = replace(JUDGE, goal="minimize")
    up, down = single(1.0, 1.4, 1.8), single(1.8, 1.4, 1.0)
    assert fires_at(when_watched_falls([WAVE, minimized]), records(single(0, 1, 2), up)) == 2
    assert fires_at(when_watched_falls([WAVE, minimized]), records(single(0, 1, 2), down)) is None
    aimed = replace(JUDGE, goal="target", target=1.0)
    assert fires_at(when_watched_falls([WAVE, aimed]), records(single(0, 1, 2), up)) == 2


def test_a_fall_counts_only_while_the_objective_rose() -> None:
    fell = single(1.0, 0.0, 0.0)
    assert fires_at(when_watched_falls([WAVE, JUDGE]), records(single(0, -1, 0), fell)) is None
    assert fires_at(when_watched_falls([WAVE, JUDGE]), records(single(0, -1, 1), fell)) == 2


def test_a_fall_must_last_as_long_as_its_patience() -> None:
    run = records(single(0, 1, 2, 3, 4, 5), single(1.0, 0.0, 0.9, 0.0, 0.0, 0.0))
    assert fires_at(when_watched_falls([WAVE, JUDGE], patience=2), run) == 4
    assert fires_at(when_watched_falls([WAVE, JUDGE], patience=3), run) == 5


def test_a_fall_must_be_that_of_every_image() -> None:
    watched = [[1, 1], [0, 1], [0, 1], [0, 0]]
    run = records([[i, i] for i in range(4)], watched)
    assert fires_at(when_watched_falls([WAVE, JUDGE]), run) == 3


def test_weights_that_moved_decide_whether_the_objective_rose() -> None:
    other = replace(JUDGE, name="other", watch=False)
    terms = [WAVE, JUDGE, other]
    run = records(single(0, 1, 2), single(1, 1, 0), single(0, -5, -9), weights=(1.0, 0.0, 0.0))
    assert when_watched_falls(terms)(run) is not None
    assert when_watched_falls(terms)(reweighted(run, (0.1, 0.0, 1.0))) is None


def test_a_watched_reward_that_is_lower_in_more_steps_has_not_fallen() -> None:
    rule = when_watched_falls([WAVE, JUDGE])
    lower = records(single(0, 1, 2, 3), single(1.0, 1.0, 0.3, 0.3))
    assert fires_at(rule, lower) == 2
    assert fires_at(rule, in_steps(lower, 2, 2, 5, 5)) is None
    falling = records(single(0, 1, 2, 3), single(1.0, 1.0, 0.9, 0.3))
    assert fires_at(rule, in_steps(falling, 2, 2, 5, 5)) == 3


def test_without_a_watched_reward_nothing_falls() -> None:
    assert fires_at(when_watched_falls([WAVE]), records(single(0, 1, 2))) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: at_target([WAVE, JUDGE], 2.0),
        lambda: on_plateau([WAVE, JUDGE], 2),
        lambda: when_untypical(),
        lambda: when_watched_falls([WAVE, JUDGE]),
    ],
    ids=["target", "plateau", "untypical", "watched"],
)
def test_a_run_recorded_from_a_later_iteration_stops_at_the_same_place(
    make: Callable[[], StopRule],
) -> None:
    rewards, judged = single(0, 1, 2, 3, 3, 3), single(1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    quantiles = single(0.5, 0.5, 0.5, 0.0, 0.0, 0.0)
    whole = records(rewards, judged, quantiles=quantiles)
    later = records(rewards, judged, quantiles=quantiles, start=7)
    at = fires_at(make(), whole)
    assert at is not None and fires_at(make(), later) == at + 7


def test_rules_are_combined_by_the_first_that_speaks() -> None:
    run = records(single(0, 1, 1, 1))
    rules = [after_iterations(9), at_target([WAVE], 7.0), on_plateau([WAVE], 2)]
    assert first_reason(rules, run[:3]) is None
    assert first_reason(rules, run) == "no gain above 0 in 2 iterations"


def test_a_choice_gives_the_rules_it_names() -> None:
    terms = [WAVE, JUDGE]
    run = records(single(0, 1, 2), single(1, 0, 0), quantiles=single(0.5, 0.5, 0.0))
    off = StopChoice(untypical=False, watched_falls=False, patience=1)
    assert off.rules(terms) == []
    assert fires_at(replace(off, untypical=True).rules(terms)[0], run) == 2
    assert fires_at(replace(off, watched_falls=True).rules(terms)[0], run) == 1
    assert fires_at(replace(off, watched_falls=True, patience=2).rules(terms)[0], run) == 2
    assert fires_at(replace(off, target=1.0).rules(terms)[0], run) == 1
    assert fires_at(replace(off, plateau=1, min_gain=0.5).rules(terms)[0], run) == 1
    assert len(StopChoice().rules(terms)) == 2
    with pytest.raises(ValueError, match="No reward is optimized"):
        StopChoice(target=1.0).rules([JUDGE])


@pytest.mark.parametrize(
    "make",
    [
        lambda: after_iterations(-1),
        lambda: after_seconds(-1),
        lambda: at_target([WAVE], float("nan")),
        lambda: at_target([WAVE], float("inf")),
        lambda: at_target([WAVE], 1.0, tolerance=-1),
        lambda: at_target([WAVE], 1.0, "no such reward"),
        lambda: at_target([WAVE], 1.0, 1),
        lambda: at_target([WAVE], 1.0, -1),
        lambda: at_target([JUDGE], 1.0),
        lambda: at_target([], 1.0),
        lambda: on_plateau([WAVE], 0),
        lambda: on_plateau([WAVE], 3, -0.1),
        lambda: when_untypical(0.0),
        lambda: when_untypical(1.0),
        lambda: when_untypical(patience=0),
        lambda: when_watched_falls([WAVE, JUDGE], 0.0),
        lambda: when_watched_falls([WAVE, JUDGE], patience=0),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_in_two_sentences(
    make: Callable[[], object],
) -> None:
    with pytest.raises(ValueError) as error:
        make()
    message = str(error.value)
    assert message.count(". ") == 1 and message.endswith(".")
