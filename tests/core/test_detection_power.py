"""Structured permutations find what uniform ones find: the same planted deviations, as often."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_dno.benchmarks.detection import PLANTED, found, power, rows_of, threshold
from comfyui_dno.dno_core.probability.arrangements import FAMILIES, arrangements, lowest_log_p
from comfyui_dno.dno_core.probability.typicality import MEASURE_SEED

N, DRAWS, NULL_DRAWS = 4096, 1500, 6000
FIVE_POINTS = 0.05

MIDDLING = {
    "mean shift": 0.055,
    "scale": 0.056,
    "correlation inside a row": 0.27,
    "correlation along one permutation": 0.27,
    "correlation at a lag": 0.5,
    "heavy tails": 1.6,
}
"""Sizes of which uniform permutations find a fifth to four fifths."""


@pytest.fixture(scope="module")
def detectors():
    made = {}
    for family in FAMILIES:
        permuted = arrangements(family, N, 4, 100, MEASURE_SEED, torch.device("cpu"), keep=True)

        def detect(z: Tensor, permuted=permuted) -> Tensor:
            return lowest_log_p(z, 4, permuted)

        made[family] = (detect, threshold(detect, N, NULL_DRAWS, 1), rows_of(permuted, N))
    return made


def found_by(detectors, family: str, kind: str, size: float) -> float:
    detector, edge, rows = detectors[family]
    return power(detector, edge, kind, size, N, DRAWS, 2, rows)


@pytest.mark.parametrize("kind", MIDDLING)
def test_structured_permutations_find_as_much_as_uniform_ones_within_5_points(detectors, kind):
    structured, uniform = (found_by(detectors, family, kind, MIDDLING[kind]) for family in FAMILIES)
    assert 0.15 < uniform < 0.85, "the size must be one that is found at times"
    assert structured >= uniform - FIVE_POINTS


def test_a_slow_drift_is_found_by_structured_permutations_alone(detectors):
    structured, uniform = (found_by(detectors, family, "slow drift", 0.28) for family in FAMILIES)
    assert structured > 0.5 and uniform < 0.1


def test_false_alarms_are_as_rare_as_the_threshold_says(detectors):
    """On noise the threshold was not taken from: at most 1 % and 3.5 standard errors."""
    for family in FAMILIES:
        detector, edge, _ = detectors[family]
        share = float((found(detector, N, 2000, 77) <= edge).float().mean())
        assert 0 < share <= 0.01 + 3.5 * (0.01 * 0.99 * (1 / 2000 + 1 / NULL_DRAWS)) ** 0.5


def test_the_identity_alone_does_not_see_what_is_planted_along_a_permutation():
    def own_order(z: Tensor) -> Tensor:
        nothing = arrangements("uniform", N, 4, 0, 0, torch.device("cpu"))
        return lowest_log_p(z, 4, nothing)

    permuted = arrangements("structured", N, 4, 100, MEASURE_SEED, torch.device("cpu"))
    rows = [r for r in rows_of(permuted, N) if int((r[:, 1] - r[:, 0]).abs().min()) > 4]
    edge = threshold(own_order, N, NULL_DRAWS, 1)
    kind = "correlation along one permutation"
    assert power(own_order, edge, kind, MIDDLING[kind], N, DRAWS, 2, rows) < 0.05


def test_what_is_planted_is_as_large_as_it_says():
    z = torch.randn(20, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    rows = [torch.randperm(N, generator=g).view(-1, 4)]
    own = torch.arange(N).view(-1, 4)
    planted = {kind: plant(z, 0.4, g, rows) for kind, plant in PLANTED.items()}
    assert torch.allclose(planted["mean shift"], z + 0.4)
    assert torch.allclose(planted["scale"], 1.4 * z)
    for kind, where in (
        ("correlation inside a row", own),
        ("correlation along one permutation", rows[0]),
    ):
        pairs = planted[kind][:, where[:, :2]].flatten(0, 1).T
        assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(0.4, abs=0.03)
    for kind in ("correlation inside a row", "correlation at a lag", "heavy tails"):
        assert float(planted[kind].var()) == pytest.approx(1, abs=0.05), kind
    assert float(planted["heavy tails"].pow(4).mean()) > 3.5
    assert float((planted["slow drift"] - z).abs().max()) == pytest.approx(0.4, abs=0.01)
