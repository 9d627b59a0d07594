"""P(z) of every step's noise: its null, the worst step, the light, the record."""

from __future__ import annotations

import math

import pytest
import torch
from core_models import generator
from torch import Tensor

from comfyui_dno.dno_core import (
    Record,
    Settings,
    TermInfo,
    Typicality,
    TypicalityReading,
    null_distribution,
    warning_lights,
)
from comfyui_dno.dno_core.probability.typicality import TAIL, quantile_of

MEASURE = Typicality()
TERM = TermInfo("brightness", "-1 to 1", 0.5, "maximize", 0.0, 1.0, False)


def noise(steps: int, images: int, seed: int, *shape: int) -> Tensor:
    return torch.randn(steps, images, *shape, generator=generator(seed))


def distance_from_uniform(quantiles: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic times the root of the number: above 1.95 once in 1000."""
    sample = quantiles.flatten().double().sort().values
    count = len(sample)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    gap = torch.maximum((sample - steps[:-1]).abs().max(), (steps[1:] - sample).abs().max())
    return float(gap) * math.sqrt(count)


def test_quantiles_of_gaussian_noise_are_uniform_for_the_whole_each_step_and_the_worst() -> None:
    """The null is simulated at 4,096 numbers; here a step has that many and the whole 24,576."""
    readings = [MEASURE(noise(6, 200, seed, 4, 32, 32)) for seed in (1, 2)]
    for name in ("quantile", "step_quantile", "step_low"):
        found = torch.cat([getattr(reading, name).flatten() for reading in readings])
        assert distance_from_uniform(found) < 1.95, name


def test_the_null_of_4096_numbers_holds_for_16384() -> None:
    found = MEASURE(noise(1, 400, 5, 4, 64, 64)).quantile
    assert distance_from_uniform(found) < 1.95


@pytest.mark.parametrize("family", ["structured", "uniform"])
def test_the_tail_is_right_far_below_what_500_draws_could_resolve(family: str) -> None:
    """Fresh draws fall below the extrapolated 0.2 % that often, within 3.5 standard errors."""
    null = null_distribution(1024, 4, 20, draws=2000, family=family)  # type: ignore[arg-type]
    measure = Typicality(4, 20, family)  # type: ignore[arg-type]
    lows = [measure(noise(1, 2000, seed, 1024)).log_p for seed in range(5)]
    found = quantile_of(torch.cat(lows), null)
    for level in (0.05, TAIL, 0.005, 0.002):
        share = float((found <= level).double().mean())
        spread = math.sqrt(level * (1 / 10_000 + 1 / 2000))
        assert abs(share - level) < 3.5 * spread, level


def test_quantiles_rise_with_p_and_have_no_gap_where_the_tail_begins() -> None:
    null = null_distribution(100_000, 4, 100)
    at = torch.linspace(float(null[0]) - 3, float(null[-1]) + 0.1, 5000)
    found = quantile_of(at, null)
    assert bool((found.diff() >= 0).all()) and float(found[-1]) == 1 and float(found[0]) > 0
    edge = null[round(TAIL * len(null))]
    below, above = quantile_of(torch.stack([edge - 1e-4, edge]), null).tolist()
    assert 0 < above - below < 1e-3


def test_the_worst_step_is_corrected_for_how_many_were_looked_at() -> None:
    reading = MEASURE(noise(7, 3, 3, 4, 16, 16))
    assert reading.step_quantile is not None and reading.step_low is not None
    lowest = reading.step_quantile.amin(0).double()
    assert reading.step_quantile.shape == (7, 3)
    assert torch.allclose(reading.step_low.double(), 1 - (1 - lowest) ** 7, rtol=1e-4)


def test_the_noise_of_one_step_is_measured_by_itself() -> None:
    z = noise(5, 2, 4, 4, 32, 32)
    whole = MEASURE(z)
    for step in range(5):
        alone = MEASURE(z[step : step + 1])
        assert torch.allclose(whole.step_log_p[step], alone.log_p, rtol=1e-4, atol=1e-6)
        assert torch.allclose(whole.step_quantile[step], alone.quantile, rtol=1e-3)
    assert torch.allclose(alone.step_low, alone.quantile, rtol=1e-4)


def test_p_of_z_of_an_image_does_not_depend_on_its_batch() -> None:
    z = noise(6, 4, 9, 4, 32, 32) * 1.01
    together = MEASURE(z)
    for image in range(4):
        alone = MEASURE(z[:, image : image + 1])
        assert torch.allclose(together.log_p[image], alone.log_p[0], rtol=1e-4, atol=1e-6)
        assert torch.allclose(
            together.step_log_p[:, image], alone.step_log_p[:, 0], rtol=1e-4, atol=1e-6
        )


def test_damage_in_one_step_is_seen_there_and_only_there() -> None:
    """The mean of one step in fifty shifted by 0.06: the whole looks as it did."""
    z = noise(50, 1, 11, 4, 32, 32)
    before = MEASURE(z)
    z[31] += 0.08
    after = MEASURE(z)
    assert int(after.step_quantile[:, 0].argmin()) == 31
    assert float(after.step_low) <= 0.01 < float(before.step_low)
    assert float(after.quantile) > 0.05
    others = torch.arange(50) != 31
    assert torch.equal(after.step_quantile[others], before.step_quantile[others])


def test_noise_smaller_than_a_row_has_no_reading_per_step() -> None:
    reading = MEASURE(noise(100, 5, 0, 2))
    assert reading.log_p.shape == (5,)
    assert reading.step_log_p is reading.step_quantile is reading.step_low is None


@pytest.mark.parametrize("size", [1e3, 1e17, 1e18, 1e30])
def test_noise_whose_squares_overflow_is_not_typical(size: float) -> None:
    reading = Typicality(permutations=20)(noise(3, 2, 5, 4, 8, 8) * size)
    assert not bool(reading.log_p.isnan().any()) and not bool(reading.typical.any())
    assert reading.step_low is not None and float(reading.step_low.max()) < 0.01


def test_measuring_leaves_the_noise_and_the_global_generator_alone() -> None:
    z = noise(3, 2, 1, 4, 16, 16)
    before, state = z.clone(), torch.random.get_rng_state()
    Typicality()(z)
    assert torch.equal(z, before) and torch.equal(state, torch.random.get_rng_state())


def record(index: int, quantile: float, *step_low: float) -> Record:
    return Record(
        index=index,
        scores=((0.1 * index,) * max(1, len(step_low)),),
        log_p=(-1.0,),
        quantile=(quantile,) * max(1, len(step_low)),
        saturated=(0.0,) * max(1, len(step_low)),
        gradient_norm=None,
        penalty=None,
        noise_rms=(1.0,),
        settings=Settings(0.01, 1.0, (1.0,)),
        seconds=1.0,
        step_low=step_low,
    )


def test_a_light_goes_on_when_a_step_leaves_though_the_whole_is_typical() -> None:
    start = record(0, 0.5, 0.4, 0.6)
    assert warning_lights([TERM], [start, record(1, 0.5, 0.3, 0.011)]) == ()
    (light,) = warning_lights([TERM], [start, record(1, 0.5, 0.3, 0.01)])
    assert light.startswith("The noise of a single step has left")
    (light,) = warning_lights([TERM], [start, record(1, 0.01, 0.3, 0.0)])
    assert light.startswith("P(z) has left"), "one light for both"


def test_no_light_for_a_step_that_was_rare_from_the_start_or_was_not_measured() -> None:
    assert warning_lights([TERM], [record(0, 0.5, 0.01), record(1, 0.5, 0.005)]) == ()
    assert warning_lights([TERM], [record(0, 0.5), record(1, 0.5)]) == ()


def test_a_reading_without_steps_can_still_be_made() -> None:
    reading = TypicalityReading(torch.zeros(2), torch.tensor([0.5, 0.001]))
    assert reading.typical.tolist() == [True, False] and reading.step_low is None
