"""The experiments as a reader runs them, in small; and the rules that make them fair."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_dno.benchmarks.experiments import NAMES
from comfyui_dno.benchmarks.experiments.cases import (
    Case,
    cases,
    development_prompts,
)
from comfyui_dno.benchmarks.experiments.cases import (
    test_prompts as prompts_of_the_test,
)
from comfyui_dno.benchmarks.experiments.plan import load, trials
from comfyui_dno.benchmarks.experiments.plan import tests as units_of
from comfyui_dno.benchmarks.experiments.report import BEGIN, END, with_generated

PAGES = Path(__file__).resolve().parents[2] / "docs" / "experiments"


def test_no_thing_and_no_seed_is_in_both_development_and_test() -> None:
    development, test = development_prompts(), prompts_of_the_test()
    things = [{p.split(" on ")[0] for p in prompts} for prompts in (development, test)]
    assert not things[0] & things[1]
    assert len(things[0] | things[1]) == 60
    everyone = cases(development, 16, 2) + cases(test, 44, 2)
    assert len({case.seed for case in everyone}) == len(everyone)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_tuned_in_the_same_number_of_trials_on_development_prompts(
    name: str, comfy: Any
) -> None:
    experiment = load(name)
    allowed = set(development_prompts())
    for arm in experiment.arms:
        found = trials(arm)
        assert len(found) in (0, experiment.trials), f"{arm.name} has {len(found)} trials"
        tried = [case.prompt for units in found.values() for unit in units for case in unit.cases]
        assert set(tried) <= allowed
        assert found or arm.like or len(arm.grid) == 1, f"{arm.name} has no knob"
        run = [case.prompt for unit in units_of(arm, 1.0) for case in unit.cases]
        assert not set(run) & allowed


def test_one_primary_contrast_of_at_least_20_prompts_and_2_seeds() -> None:
    primary = [
        (load(name), contrast)
        for name in NAMES
        for contrast in load(name).contrasts
        if contrast.primary
    ]
    ((experiment, contrast),) = primary
    for name in (contrast.arm, contrast.against):
        arm = experiment.arm(name)
        assert arm.prompts >= 20 and arm.seeds >= 2


def test_the_contrasts_name_arms_and_the_units_of_two_arms_differ() -> None:
    for name in NAMES:
        experiment = load(name)
        assert experiment.name == name
        names = [arm.name for arm in experiment.arms]
        assert len(set(names)) == len(names)
        wanted = {n for c in experiment.contrasts for n in (c.arm, c.against)}
        wanted |= {n for figure in experiment.figures for n in figure.arms}
        assert wanted <= set(names)
        recipes = [json.dumps(vars(arm.recipe), sort_keys=True) for arm in experiment.arms]
        knobs = [(recipe, arm.grid) for recipe, arm in zip(recipes, experiment.arms, strict=True)]
        assert len(set(knobs)) == len(knobs), "two arms that do the same"


def test_a_page_keeps_what_was_written_by_hand() -> None:
    page = f"# Title\n\nwhy\n\n{BEGIN}\nold numbers\n{END}\n\nwhat it means\n"
    new = with_generated(page, "new numbers")
    assert new == f"# Title\n\nwhy\n\n{BEGIN}\nnew numbers\n{END}\n\nwhat it means\n"
    assert with_generated("# Title\n", "x") == f"# Title\n\n{BEGIN}\nx\n{END}\n"


@pytest.fixture(scope="module")
def lab(comfy: Any) -> Any:
    from comfyui_dno.benchmarks.experiments.setting import Lab

    return Lab()


def test_every_image_of_a_batch_is_the_picture_of_its_own_prompt_and_seed(lab: Any) -> None:
    """Against ComfyUI's own sampler, one picture at a time."""
    import comfy.sample

    from comfyui_dno.benchmarks.experiments.setting import climbed

    chosen = [Case("cat face", 3), Case("red apple on blue", 4), Case("cat face", 5)]
    found = lab.at_bench(
        chosen,
        climbed("darkness", chosen),
        lambda bench: (bench.noise_map.forward(bench.z).final, bench.z),
        steps=3,
    )
    for index, case in enumerate(chosen):
        latent = torch.zeros(1, 8, 16, 16)
        alone = comfy.sample.sample(
            lab.model,
            comfy.sample.prepare_noise(latent, case.seed),
            3,
            3.0,
            "euler_ancestral",
            "normal",
            lab.encode([case.prompt]),
            lab.encode([""]),
            latent,
            seed=case.seed,
            disable_pbar=True,
        )
        ours = lab.model.model.process_latent_out(found[0][index : index + 1])
        assert torch.allclose(ours, alone, atol=1e-4)


def test_everything_that_is_computed_is_charged(lab: Any) -> None:
    """One iteration of DNO: a forward, a decode, a backward, a second forward and decode."""
    from comfyui_dno.benchmarks.experiments import counting
    from comfyui_dno.benchmarks.experiments.climbs import dno
    from comfyui_dno.benchmarks.experiments.setting import climbed

    chosen = [Case("cat face", 3), Case("pizza", 4)]

    def work(bench: Any) -> list[float]:
        run = dno(bench, 0.03, 1, regularizer={"class": "NoRegularizer"})
        return [bench.costs.spent for _ in itertools.islice(run, 2)]

    first, second = lab.at_bench(chosen, climbed("darkness", chosen), work, steps=3)
    assert first == pytest.approx(3 * counting.FORWARD + counting.DECODE)
    back = 3 * counting.BACKWARD + counting.DECODE_BACKWARD
    assert second == pytest.approx(2 * first + back)


@pytest.mark.slow
def test_the_quick_form_of_every_experiment_runs_and_is_resumed(
    comfy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from comfyui_dno.benchmarks.experiments.command import main

    arguments = ["all", "--quick", "--folder", str(tmp_path)]
    assert main(arguments) == 0, capsys.readouterr().err
    results = tmp_path / "benchmarks" / "results"
    for name in NAMES:
        page = (tmp_path / "docs" / "experiments" / f"{name}.md").read_text(encoding="utf-8")
        assert "Not finished" not in page
        assert (tmp_path / "docs" / "experiments" / f"{name}.png").stat().st_size > 10_000
        with open(results / f"{name}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["arm"] for row in rows} == {c.arm for c in load(name).contrasts}
        with open(results / f"{name}_curves.csv", encoding="utf-8", newline="") as file:
            runs = list(csv.DictReader(file))
        assert {row["arm"] for row in runs} == {arm.name for arm in load(name).arms}
    units = sorted((results / "units").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in units}
    units[0].unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count(": done") == 1, "only what was missing is done again"
    after = {path: path.stat().st_mtime_ns for path in units}
    assert {path for path in units if after[path] != before[path]} == {units[0]}


def test_every_experiment_has_a_page_with_a_place_for_its_numbers() -> None:
    for name in NAMES:
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page.count(BEGIN) == page.count(END) == 1, name
        assert f"python benchmarks/experiment.py {name}" in page
