"""The benchmark of the rewards finds them all and measures what it says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from comfyui_dno import rewards

ROOT = Path(__file__).parents[2]
SCRIPTS = ("checkout", "random_weights", "full_size", "reward_cases", "picture_scales")


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts in benchmarks/, which find each other as they do when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in SCRIPTS:
            patch.delitem(sys.modules, name, raising=False)
        found = {name: importlib.import_module(name) for name in SCRIPTS}
        spec = importlib.util.spec_from_file_location(
            "dno_rewards_benchmark", ROOT / "benchmarks" / "rewards.py"
        )
        assert spec is not None and spec.loader is not None
        found["rewards"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found["rewards"])
        yield found
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_every_reward_is_measured_or_left_out_with_a_reason(scripts):
    cases = scripts["reward_cases"]
    measured = {case.reward for case in cases.cases().values()}
    left_out = cases.left_out()
    assert measured | set(left_out) == set(rewards.REGISTRY)
    assert not measured & set(left_out) and all(left_out.values())
    assert {"brightness", "jpeg_compressibility", "clip_score"} <= measured


def test_a_gradient_and_its_preprocessing_are_measured(scripts):
    case = scripts["reward_cases"].cases()["clip_score (demo reward)"]
    found = scripts["rewards"].measure(case, 256, repeats=3)
    assert all(found[key] > 0 for key in ("score_ms", "gradient_ms", "preprocessing_ms"))
    assert found["preprocessing_share"] == found["preprocessing_ms"] / found["gradient_ms"]
    (module,) = rewards.create("clip_score").modules
    weights = sum(each.numel() * each.element_size() for each in module.parameters())
    assert found["weights_mb"] == weights / 2**20


def test_a_black_box_has_no_gradient_to_measure(scripts):
    case = scripts["reward_cases"].cases()["jpeg_compressibility"]
    found = scripts["rewards"].measure(case, 64, repeats=1)
    assert found["gradient_ms"] is None and found["preprocessing_ms"] is None
    assert found["score_ms"] > 0 and found["weights_mb"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_what_the_work_takes_above_what_was_there(scripts):
    before = torch.ones(2**22)
    peak = scripts["rewards"].peak_of(lambda: torch.ones(2**24).sum() + before.sum())
    assert 60 < peak < 80


def test_the_test_picture_looks_like_a_photograph_to_a_jpeg(scripts):
    image = scripts["rewards"].picture(256, 0)
    assert image.shape == (1, 3, 256, 256) and 0 <= image.min() < image.max() <= 1
    bits = rewards.create("jpeg_incompressibility").score(image).item()
    noise = rewards.create("jpeg_incompressibility").score(torch.rand(1, 3, 256, 256)).item()
    assert 1 < bits < noise / 1.5


SMALL = {
    "CLIP_B_32": ((64, 2, 2, 96, 32, 16), (32, 2, 2, 48, 77), 512, "quick_gelu"),
    "CLIP_L_14": ((64, 2, 2, 96, 28, 14), (32, 2, 2, 48, 77), 768, "quick_gelu"),
    "CLIP_H_14": ((160, 2, 2, 320, 28, 14), (64, 2, 1, 128, 77), 32, "gelu"),
}


@pytest.fixture
def small(scripts, monkeypatch):
    """The published models' files at a small size."""
    sizes = scripts["full_size"]
    for name, (vision, text, embedding, activation) in SMALL.items():
        clip = sizes.Clip(sizes.Vit(*vision), sizes.Vit(*text), embedding, activation)
        monkeypatch.setattr(sizes, name, clip)
    monkeypatch.setattr(sizes, "SIGLIP_SO400M", sizes.Vit(48, 2, 2, 96, 28, 14))
    blip = (sizes.Vit(64, 2, 1, 128, 32, 16), sizes.Vit(32, 2, 2, 64, 40))
    monkeypatch.setattr(sizes, "BLIP_L_16", blip)
    return scripts["reward_cases"].cases()


def test_models_with_random_weights_load_from_their_files_and_score(small, scripts, tmp_path):
    images = scripts["rewards"].picture(64, 0)
    context = rewards.Context(prompts=("a cat",), references=scripts["rewards"].picture(64, 1))
    full = [case for case in small.values() if case.full]
    assert {"aesthetic", "hps", "image_reward", "pickscore"} <= {case.reward for case in full}
    for index, case in enumerate(full):
        folder = tmp_path / str(index)
        folder.mkdir()
        reward = rewards.create(case.reward, **case.inputs(folder))
        leaf = images.clone().requires_grad_(True)
        score = reward.score(leaf, context)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
        assert score.isfinite().all() and gradient.norm() > 0, case.name


def test_the_committed_results_are_of_this_benchmark(scripts):
    results = json.loads(scripts["rewards"].RESULTS.read_text(encoding="utf-8"))
    for name, rows in results["rewards"].items():
        assert set(rows) == {"512", "1024"}, name
        for size, found in rows.items():
            line = scripts["rewards"].line(name, size, found, results["demo_forward_ms"])
            assert line.startswith(name)
            assert found["score_ms"] > 0 and found["working_mb"] >= 0


# The spread over a folder of pictures


def test_the_spread_is_pooled_and_within_prompts(scripts):
    scores = {"a": 1.0, "b": 3.0, "c": 10.0, "d": 12.0, "e": 14.0, "f": 100.0}
    prompts = dict(zip("abcdef", "xxyyyz", strict=True))
    found = scripts["picture_scales"].spread(scores, prompts)
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    assert found["scale"] == pytest.approx(values.std().item())
    # variances 2 (1 degree of freedom) and 4 (2); a prompt with one picture tells nothing
    assert found["within_prompt"] == pytest.approx(((2 + 2 * 4) / 3) ** 0.5)
    assert (found["least"], found["greatest"]) == (1, 100)
    assert scripts["picture_scales"].spread(scores, {})["within_prompt"] is None


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_any_reward_is_measured_on_a_folder_of_pictures(scripts, tmp_path):
    from PIL import Image

    for index, grey in enumerate((0, 255, 51, 204)):
        Image.new("RGB", (40 + index, 30), (grey,) * 3).save(tmp_path / f"{index}.png")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("0.png\tx\n1.png\tx\n2.png\ty\n3.png\ty\n", encoding="utf-8")
    done = run(
        "reward_scales.py", "--reward", "brightness", "--pictures", tmp_path, "--prompts", prompts
    )
    assert done.returncode == 0, done.stderr
    numbers = dict(line.split()[:2] for line in done.stdout.splitlines()[1:5])
    expected = torch.tensor([-1.0, 1.0, -0.6, 0.6])
    assert float(numbers["scale"]) == pytest.approx(expected.std().item(), abs=1e-3)
    assert float(numbers["within_prompt"]) == pytest.approx(((2 + 0.72) / 2) ** 0.5, abs=1e-3)
    assert "shipped scale  0.335 (python benchmarks/reward_scales.py)" in done.stdout


def test_a_picture_without_prompt_and_a_reward_that_is_not_there_are_named(tmp_path):
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a.png\ta cat\n", encoding="utf-8")
    done = run(
        "reward_scales.py", "--reward", "brightness", "--pictures", tmp_path, "--prompts", prompts
    )
    assert done.returncode and "has no prompt for b.png" in done.stderr
    done = run("reward_scales.py", "--reward", "beauty", "--pictures", tmp_path)
    assert done.returncode and 'There is no reward "beauty"' in done.stderr
