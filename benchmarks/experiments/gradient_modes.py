"""Experiment 6: cheap gradients and few steps in the loop, against the exact gradient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import cosines, redraws
from .curves import Curve
from .gains import SHARE, Moment, moment, reach
from .plan import Arm, Contrast, Experiment, Figure, Recipe
from .regularizer import PAPER
from .running import Results
from .setting import Lab

STEPS = 50
ITERATIONS, CHEAP_ITERATIONS = 50, 30
LOOKS = (3, 6, 10, 15, 20, 25)
RATES = (0.0075, 0.015, 0.03)
REFERENCE = "exact_50"

PROMPTS, TUNED_ON, TUNED_FOR, BATCH = 10, 4, 20, 5

MODES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "exact": ("exact", {"name": "exact"}),
    "last3": ("last 3", {"name": "last k", "k": 3}),
    "linear": ("linear", {"name": "linear"}),
}

PLAN = (
    ("exact", 10),
    ("last3", 50),
    ("linear", 50),
)
"""Mode and steps of the loop."""

REFINED, REFINED_LAST = "refined", "refined_last3"
"""Exact in 10 steps, then in all 50 from the noise found so far: exact, or the last 3."""

PRESETS = ("exact_10", "last3_50", "linear_50", REFINED)
"""The arms that presets of DNO Sampler could stand on."""

COSINES, REDRAWS = "gradient_cosines.json", "coarse_scores.json"


def _arm(mode: str, steps: int, label: str = "", **more: Any) -> Arm:
    name, arguments = MODES[mode]
    options = {"regularizer": PAPER, "mode": arguments, **more}
    if steps < STEPS:
        options["optimize_steps"] = steps
        if not more:
            options["checkpoints"] = LOOKS
    recipe = Recipe("cheap.cheap", options, steps=STEPS, iterations=CHEAP_ITERATIONS)
    return _tuned(f"{mode}_{steps}", label or f"{name}, {steps} steps", recipe)


def _refined_exactly() -> Arm:
    """Both stages at the rates that were chosen for them alone; nothing is tuned anew."""
    arm = _arm(
        "exact",
        10,
        f"exact, 10 steps; from 15 on exact, {STEPS} steps",
        refine_after=15,
        refine_mode=MODES["exact"][1],
        refine_rate=RATES[0],
    )
    recipe = replace(arm.recipe, iterations=23)
    return replace(arm, name=REFINED, recipe=recipe, grid=(), like="exact_10")


def _tuned(name: str, label: str, recipe: Recipe) -> Arm:
    return Arm(
        name,
        label,
        recipe,
        RATES,
        prompts=PROMPTS,
        tuned_on=TUNED_ON,
        tuned_for=TUNED_FOR,
        trial_options={"checkpoints": ()} if "checkpoints" in recipe.options else {},
        batch=BATCH,
    )


ARMS = (
    _tuned(
        REFERENCE,
        f"exact, {STEPS} steps",
        Recipe("climbs.dno", {"regularizer": PAPER}, steps=STEPS, iterations=ITERATIONS),
    ),
    *(_arm(*planned) for planned in PLAN),
    replace(
        _arm(
            "exact",
            10,
            f"exact, 10 steps; from 12 on last 3, {STEPS} steps",
            refine_after=12,
            refine_mode=MODES["last3"][1],
        ),
        name=REFINED_LAST,
    ),
    _refined_exactly(),
)


def measure(folder: Path, small: bool = False) -> None:
    """The cosines of the gradients and the scores of coarse drawings, each a file of `folder`."""
    lab: Lab | None = None
    for name, part in ((COSINES, cosines.measure), (REDRAWS, redraws.measure)):
        if not (folder / name).is_file():
            lab = lab or Lab()
            part(folder / name, lab, small)


def extra(results: Results) -> str:
    tables = (
        gains_table(results),
        cosines_table(results.folder),
        redraws_table(results.folder),
    )
    return "\n\n".join(table for table in tables if table)


def gains_table(results: Results) -> str:
    """When every arm has reached its share of the reference's gain, and what it ends with."""
    if REFERENCE not in results.curves:
        return ""
    reference = results.curves[REFERENCE]
    end = moment(reference, ITERATIONS)
    target = SHARE * end.gain
    base = reach(reference, target)
    assert base is not None
    lines = [
        f"### Time to {SHARE:.0%} of the reference's gain\n\nThe reference gains {end.gain:.2f} "
        f"scales of the reward in {end.iteration} iterations ({end.cost:.0f} forward-equivalents, "
        f"{end.seconds:.0f} s an image) and has {SHARE:.0%} of it, {target:.2f}, after iteration "
        f"{base.iteration}. All are means over the same {len(reference)} pictures, drawn with "
        f"{STEPS} steps; redraws are charged. Faster: the reference's cost to the same gain over "
        "the arm's; in brackets its cost of all iterations over the arm's. P(z): mean (lowest) "
        "quantile of what is returned.\n",
        "| arm | learning rate | reached after iteration | cost | seconds | faster, cost | faster, "
        "seconds | judge there | P(z) there | gain at the end | judge | P(z) | gain seen by the "
        "loop |",
        "|" + " --- |" * 13,
    ]
    for arm in results.experiment.arms:
        curves = results.curves.get(arm.name)
        if curves is not None:
            cells = _cells(curves, target, base, end)
            rate = f"{results.tuned[arm.name].knob:g}"
            lines.append(f"| {arm.label} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(curves: list[Curve], target: float, base: Moment, end: Moment) -> list[str]:
    found = reach(curves, target)
    last = moment(curves, max(map(len, curves)) - 1)
    there = ["not reached", *["-"] * 6]
    if found is not None:
        there = [
            str(found.iteration),
            f"{found.cost:.0f}",
            f"{found.seconds:.1f}",
            f"{base.cost / found.cost:.1f} ({end.cost / found.cost:.1f})",
            f"{base.seconds / found.seconds:.1f} ({end.seconds / found.seconds:.1f})",
            f"{found.judge:+.2f}",
            _typicality(found),
        ]
    seen = [curve.loop[-1] - curve.loop[0] for curve in curves if curve.loop]
    loop = f"{sum(seen) / len(seen):+.2f}" if seen else "the same"
    return [*there, f"{last.gain:+.2f}", f"{last.judge:+.2f}", _typicality(last), loop]


def _typicality(found: Moment) -> str:
    return f"{found.quantile:.2f} ({found.lowest:.2f})"


def cosines_table(folder: Path) -> str:
    """The cosines, means over the prompts: of the whole gradient, and noise by noise."""
    path = folder / COSINES
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["rows"]
    columns = list(dict.fromkeys((r["reward"], r["steps"], r["iteration"]) for r in rows))
    found = {
        (r["mode"], r["reward"], r["steps"], r["iteration"]): (r["cosine"], r["per_noise"])
        for r in rows
    }
    heads = [f"{reward}, {steps} steps, iteration {at}" for reward, steps, at in columns]
    lines = [
        f"### Cosine with the exact gradient\n\nMeans over {len(content['prompts'])} development "
        "prompts, at the noise one starts from and after climbing with the exact gradient: of the "
        "whole gradient / mean of the cosines within each noise, which is what Adam sees.\n",
        f"| mode | {' | '.join(heads)} |",
        "|" + " --- |" * (1 + len(heads)),
    ]
    for mode in dict.fromkeys(r["mode"] for r in rows):
        pairs = [found.get((mode, *column)) for column in columns]
        cells = ["-" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}" for pair in pairs]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def redraws_table(folder: Path) -> str:
    """How the scores of the same plain noise in few steps go with those in all of them."""
    path = folder / REDRAWS
    if not path.is_file():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"### Few steps and all of them, same noise\n\nScores of {content['samples']} plain "
        f"samples of development prompts, drawn in few steps and in {STEPS}, in scales of the "
        "reward: correlation over all samples, within prompts, and the mean difference.\n",
        "| steps | correlation | within prompts | few - all |",
        "| --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        lines.append(
            f"| {row['steps']} | {row['correlation']:.2f} | {row['within_prompts']:.2f} | "
            f"{row['shift']:+.2f} |"
        )
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="gradient_modes",
    title="Cheap gradients and few steps in the loop",
    arms=ARMS,
    contrasts=tuple(Contrast(arm.name, REFERENCE) for arm in ARMS[1:]),
    figures=(
        Figure("Climbs in all steps", (REFERENCE, "last3_50", "linear_50")),
        Figure("Climbs in 10 steps, redrawn", (REFERENCE, "exact_10", REFINED_LAST, REFINED)),
    ),
    extra=extra,
    trials=len(RATES),
    measure=measure,
)
