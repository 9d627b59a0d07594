"""benchmarks/gpu.py on a CPU: every stage runs, the sizes are right, and no number is claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import FunctionDecoder, GradientMode
from comfyui_dno.dno_core import Path as Latents

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
DRY_STEPS = 4


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The modules in benchmarks/gpu_parts, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from gpu_parts import families, sheet, slopes, tables, targets, work

        yield SimpleNamespace(
            families=families, sheet=sheet, slopes=slopes, tables=tables, targets=targets, work=work
        )
    for name in [name for name in sys.modules if name.split(".")[0] == "gpu_parts"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def dry_run(comfy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result file of one dry run of all stages."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(SCRIPT), "--dry-run", "--output", str(folder)]
    settings = {**os.environ, "COMFYUI_PATH": str(comfy.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = folder.iterdir()
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_case_and_check_runs_or_says_what_this_machine_lacks(dry_run: dict[str, Any]) -> None:
    assert dry_run["failures"] == []
    lacking = ("is not installed", "itself here", "leaves xformers out here")
    assert all(row["reason"].endswith(lacking) for row in dry_run["skipped"])
    families = {(row["family"], row["precision"]) for row in dry_run["iterations"]}
    assert {("SD1.5", "bf16"), ("SD1.5", "fp16"), ("SDXL", "bf16"), ("SDXL", "fp16")} == families
    assert {row["steps"] for row in dry_run["iterations"]} == {50, 20, 4}
    assert {row["iterations"] for row in dry_run["iterations"]} == {2}
    assert {row["family"] for row in dry_run["published"]} == {"SD1.5", "SDXL"}
    assert dry_run["tests"]["passed"] and "skipped" in dry_run["tests"]["summary"]


@pytest.mark.slow
def test_the_denoiser_is_called_as_often_as_mode_and_policy_say(dry_run: dict[str, Any]) -> None:
    """A call whose graph is kept is not made once more; tiny graphs all fit."""
    for row in dry_run["iterations"]:
        mode = GradientMode(row.get("gradient_mode", "exact"), row.get("gradient_steps", 1))
        differentiated = mode.costs(DRY_STEPS)
        keeps = row.get("graph_memory", "auto") in ("auto", "store")
        assert row["graph_calls"] == differentiated, row
        assert row["plain_calls"] == DRY_STEPS - (differentiated if keeps else 0), row
        assert row["complete"], row


@pytest.mark.slow
def test_gradients_are_right_on_the_cpu_as_well(dry_run: dict[str, Any]) -> None:
    verdicts = {row["name"]: row["passed"] for row in dry_run["gradients"]}
    assert verdicts.pop("Flux without in_training") is None
    assert all(verdicts.values()) and len(verdicts) > 12


@pytest.mark.slow
def test_a_dry_run_claims_no_number(dry_run: dict[str, Any], parts: Any) -> None:
    rows = [*dry_run["iterations"], *dry_run["published"], *dry_run["gradients"]]
    measured = [row[name] for row in rows for name in parts.sheet.MEASURED if name in row]
    assert len(measured) > len(rows) and set(measured) == {None}
    assert {row["met"] for row in dry_run["targets"]} == {None}
    with pytest.raises(ValueError, match="no numbers"):
        parts.tables.tables(dry_run)


def test_the_models_have_the_published_sizes(comfy: Any, parts: Any) -> None:
    sizes = {
        family.name: parts.work.parameters_of(family)
        for family in (parts.families.SD15, parts.families.SDXL)
    }
    assert sizes == {"SD1.5": 859_520_964, "SDXL": 2_567_463_684}


def test_flops_of_an_iteration_are_those_of_its_calls(comfy: Any, parts: Any) -> None:
    flops = parts.work.flops_of(parts.families.tiny(parts.families.SD15), True)
    assert all(count > 0 for count in flops)
    made = parts.work.Flops(call=10.0, call_backward=11.0, decode=3.0, decode_backward=4.0)
    assert made.iteration(50, 50, False) == 50 * 10 + 50 * (10 + 11) + 10
    assert made.iteration(0, 50, False) == 50 * (10 + 11) + 10
    assert made.iteration(50, 3, True) == 50 * 10 + 3 * (2 * 10 + 11) + 10


def test_linear_layers_are_counted_as_two_operations_a_weight(parts: Any) -> None:
    linear = torch.nn.Linear(30, 20, bias=False).requires_grad_(False)
    forward, backward = parts.work._forward_and_backward(linear, torch.zeros(7, 30))
    assert forward == backward == 2 * 7 * 30 * 20


def row(**changes: Any) -> dict[str, Any]:
    usual = {"family": "SD1.5", "steps": 50, "precision": "fp16", "limit_gb": None}
    usual |= {"reward": "pixels", "seconds": 2.0, "peak_gb": 5.0, "reserved_gb": 6.0}
    return {**usual, "matrix_share": 0.4, "complete": True, **changes}


def result(*iterations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"iterations": list(iterations), "published": [], "failures": [], **more}


def met(parts: Any, found: dict[str, Any]) -> list[bool | None]:
    return [each["met"] for each in parts.targets.targets(found)]


def test_targets_are_judged_by_the_runs_they_name(parts: Any) -> None:
    plain = row(graph_memory="recompute")
    assert met(parts, result(plain)) == [True, None, None, None, None]
    fat = row(graph_memory="recompute", peak_gb=8.1)
    assert met(parts, result(plain, fat))[0] is False
    stored = row(graph_memory="store", peak_gb=60.0)
    one_step = row(graph_memory="recompute", gradient_mode="one step", peak_gb=60.0)
    assert met(parts, result(plain, stored, one_step))[0] is True


def test_a_run_within_a_limit_has_to_get_through(parts: Any) -> None:
    held = row(limit_gb=8.0, reserved_gb=7.9)
    assert met(parts, result(held))[1] is True
    assert met(parts, result({**held, "complete": False}))[1] is False
    lost = {"name": "SD1.5 x 50 bf16, within 8 GB", "stage": "iterations", "error": "out of memory"}
    assert met(parts, result(failures=[lost]))[1] is False
    other = {"name": "SDXL x 20 bf16, within 11 GB", "stage": "iterations", "error": "no"}
    assert met(parts, result(failures=[other]))[1:4] == [None, None, False]


@pytest.mark.parametrize(("seconds", "expected"), [(4.0, True), (3.9, False)])
def test_the_speed_is_held_against_the_published_run_of_the_same_model(
    parts: Any, seconds: float, expected: bool
) -> None:
    published = row(seconds=seconds)
    cheap = row(gradient_mode="linear", seconds=0.1)
    other = row(precision="bf16", seconds=0.1)
    found = result(row(), cheap, other, published=[published])
    assert met(parts, found)[-1] is expected
    text = parts.tables.published_table(found)
    assert len(text.splitlines()) == 3 and f"{seconds / 2:.2f}" in text


def test_the_tables_show_every_row(parts: Any) -> None:
    device = {"name": "GPU of a test", "memory_gb": 24.0, "torch": "2.0"}
    wrong = {"name": "attention_x", "cosine": 0.5, "norm_ratio": 1.0, "passed": False}
    found = result(
        row(graph_memory="store"),
        row(optimize_steps=10, gradient_mode="one step", loop_decoder="tiny VAE"),
        dry_run=False,
        device=device,
        comfyui="0.30.0",
        targets=[],
        gradients=[wrong],
    )
    text = parts.tables.tables(found)
    assert "GPU of a test, 24 GB" in text and "one step, 10 steps" in text and "tiny" in text
    assert "| NO " in text and "40%" in text


def test_what_is_measured_is_on_the_disk_at_once(parts: Any, tmp_path: Path) -> None:
    sheet = parts.sheet.Sheet(tmp_path / "deep" / "file.json", 60.0, False, {"dry_run": False})
    sheet.add("iterations", {"seconds": 1.23456789})
    try:
        raise ValueError("what went wrong\nand more")
    except ValueError as error:
        sheet.fail("iterations", "a case", error)
    on_disk = json.loads((tmp_path / "deep" / "file.json").read_text(encoding="utf-8"))
    assert on_disk["iterations"] == [{"seconds": 1.235}]
    assert on_disk["failures"][0]["error"] == "ValueError: what went wrong"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["file.json"]


class Curved:
    """A noise map whose gradient is known: x = sum over noises of z^2 / 2 + z."""

    def forward(self, z: Tensor) -> Latents:
        return Latents((), (z.square() / 2 + z).sum(0))


@pytest.mark.parametrize(
    ("spoil", "right"),
    [
        (lambda g: g, True),
        (lambda g: 1.2 * g, False),
        (lambda g: torch.cat([g[:1], -0.3 * g[1:]]), False),
        (lambda g: 0 * g, False),
    ],
)
def test_slopes_tell_a_right_gradient_from_a_wrong_one(parts: Any, spoil: Any, right: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 4, 8, 8, generator=generator)
    weight = torch.randn(1, 4, 8, 8, generator=generator)
    problem = SimpleNamespace(noise_map=Curved(), decoder=FunctionDecoder(lambda x: x))
    found = SimpleNamespace(image_gradient=weight)
    gradient = spoil(weight * (z + 1))
    errors = parts.slopes.slope_errors(problem, z, found, gradient, parts.slopes.FINE)
    assert (max(errors.values()) < 0.01) is right
    assert parts.slopes.likeness(weight, weight)["cosine"] == pytest.approx(1.0)


def test_without_a_gpu_it_says_so_and_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path)]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "--dry-run" in done.stderr
    assert list(tmp_path.iterdir()) == []
