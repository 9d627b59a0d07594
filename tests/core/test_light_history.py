"""A warning light that went out again is still told of at the end, once."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui_dno.dno_core import Record, Settings, TermInfo, lights_of_run, warning_lights

INFO = TermInfo("wave 2", "units", 2.0, "maximize", 0.0, 1.0, False)
JUDGES = [TermInfo(f"judge {i}", "points", 0.5, "maximize", 0.0, 1.0, True) for i in (1, 2)]


def records(
    quantiles: Sequence[float], saturated: Sequence[float], judged: Sequence[Sequence[float]]
) -> list[Record]:
    return [
        Record(
            index=i,
            scores=((float(i),), *((row[i],) for row in judged)),
            log_p=(-1.0,),
            quantile=(quantiles[i],),
            saturated=(saturated[i],),
            gradient_norm=None,
            penalty=None,
            noise_rms=(1.0,),
            settings=Settings(0.01, 1.0, (1.0, 0.0, 0.0)),
            seconds=1.0,
        )
        for i in range(len(quantiles))
    ]


def test_a_quiet_run_has_no_warnings() -> None:
    assert lights_of_run((INFO, *JUDGES), records([0.5] * 3, [0.0] * 3, [[1.0] * 3] * 2)) == ()


def test_a_light_that_went_out_is_kept_once_with_its_first_iteration() -> None:
    run = records([0.5, 0.5, 0.5, 0.001, 0.5], [0.1, 0.7, 0.9, 0.8, 0.1], [[1.0] * 5, [1.0] * 5])
    assert warning_lights((INFO, *JUDGES), run) == ()
    burnt, left = lights_of_run((INFO, *JUDGES), run)
    assert "70% more of the pixel values" in burnt, "as in the last iteration with the light on"
    assert burnt.endswith("First lit at iteration 1.")
    assert "(since iteration 3)" in left and left.endswith("First lit at iteration 3.")


def test_lights_of_different_rewards_are_different_lights() -> None:
    run = records([0.5] * 4, [0.0] * 4, [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    first, second = lights_of_run((INFO, *JUDGES), run)
    assert "'judge 2'" in first and first.endswith("First lit at iteration 1.")
    assert "'judge 1'" in second and second.endswith("First lit at iteration 2.")


def test_the_lights_of_a_run_are_those_that_every_iteration_had() -> None:
    """Out of the range, back, and out again: worded as the newest iteration words it."""
    outside = (2, 3, 6, 7, 8)
    quantiles = [0.001 if i in outside else 0.4 for i in range(9)]
    run = records(quantiles, [0.0] * 9, [[1.0] * 9] * 2)
    told = lights_of_run((INFO, *JUDGES), run)
    assert warning_lights((INFO, *JUDGES), run)[0] in told[0] and "since iteration 6" in told[0]
    assert told[0].endswith("First lit at iteration 2.") and len(told) == 1
