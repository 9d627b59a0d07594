from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfyui_dno.rewards import create, lpips
from comfyui_dno.rewards.clip_score import DEMO_FOLDERS, SCALES

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reward_scales.json"


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert result["samples"] >= 200
    return {name: found["scale"] for name, found in result["rewards"].items()}


@pytest.mark.parametrize(
    "name",
    [
        "brightness",
        "darkness",
        "contrast",
        "colour",
        "saturation",
        "sharpness",
        "palette",
        "colour_match",
    ],
)
def test_the_scale_of_a_pixel_reward_is_the_measured_one(name, measured):
    assert create(name).scale == pytest.approx(measured[name], rel=0.02)


@pytest.mark.parametrize("model", list(DEMO_FOLDERS))
def test_the_scale_of_a_demo_clip_is_the_measured_one(model, measured):
    assert SCALES[model] == pytest.approx(measured[f"clip_score ({model})"], rel=0.02)


@pytest.mark.parametrize("model", list(DEMO_FOLDERS))
def test_the_scale_of_likeness_by_a_demo_clip_is_the_measured_one(model, measured):
    found = measured[f"clip_similarity ({model})"]
    assert create("clip_similarity", model=model).scale == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("family", ["AlexNet", "VGG16"])
def test_the_scale_of_lpips_is_the_measured_one_of_the_shift_tolerant_form(family, measured):
    found = measured[f"lpips (shift-tolerant {family})"]
    assert lpips.SCALES[f"shift-tolerant {family}"] == pytest.approx(found, rel=0.02)
    assert lpips.SCALES[family] == lpips.SCALES[f"shift-tolerant {family}"]


@pytest.mark.parametrize("model", list(DEMO_FOLDERS))
def test_the_demo_clips_load_and_know_bare_captions(model, images):
    reward = create("clip_score", model=model)
    assert reward.name == f"clip_score ({model})" and reward.template == ""
    assert reward.scale == SCALES[model]
