"""The CSV files and the tables of a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence

from .compare import MEASURES, Effect, effect, pairs
from .curves import COLUMNS, Curve
from .plan import Contrast
from .running import Results

PAGE_MEASURES = tuple(list(MEASURES)[:5]) + ("judge returned",)
"""The measures that stand in a page; all are in the CSV."""


def effects(results: Results, contrast: Contrast) -> dict[str, Effect]:
    found = pairs(results.curves[contrast.arm], results.curves[contrast.against])
    return {name: effect(found, measure) for name, measure in MEASURES.items()}


def comparable(results: Results) -> list[Contrast]:
    """The contrasts both of whose arms are there, the primary one first."""
    there = [c for c in results.experiment.contrasts if {c.arm, c.against} <= results.curves.keys()]
    return sorted(there, key=lambda contrast: not contrast.primary)


def summary_csv(results: Results) -> str:
    """Every contrast and measure in a row."""
    rows: list[Sequence[object]] = [
        ("kind", "arm", "against", "measure", "mean", "low", "high", "detectable", "prompts",
         "pairs")
    ]  # fmt: skip
    for contrast in comparable(results):
        kind = "primary" if contrast.primary else "exploratory"
        for name, found in effects(results, contrast).items():
            numbers = (found.mean, found.low, found.high, found.detectable)
            counts = (found.prompts, found.pairs)
            primary = kind if name == "judge at equal reward" else "exploratory"
            rows.append(
                (primary, contrast.arm, contrast.against, name, *map(short, numbers), *counts)
            )
    return _csv(rows)


def curves_csv(results: Results) -> str:
    """Every test run: an iteration in a row."""
    rows: list[Sequence[object]] = [("arm", "knob", "prompt", "seed", "iteration", *COLUMNS)]
    for name, curves in results.curves.items():
        knob = f"{results.tuned[name].knob:g}"
        for curve in curves:
            for index in range(len(curve)):
                values = (short(getattr(curve, column)[index]) for column in COLUMNS)
                iteration = curve.iteration[index] if curve.iteration else index
                rows.append((name, knob, curve.prompt, curve.seed, iteration, *values))
    return _csv(rows)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def arms_table(results: Results) -> str:
    """What every arm gave on the test prompts, means over its runs."""
    lines = [
        "| arm | knob | runs | reward at start | returned | judge at start | returned | distance "
        "returned | P(z) quantile, end | lowest step, end | cost | seconds |",
        "|" + " --- |" * 12,
    ]
    for arm in results.experiment.arms:
        if arm.name not in results.curves:
            continue
        curves = results.curves[arm.name]
        cells = [
            arm.label,
            f"{results.tuned[arm.name].knob:g}",
            str(len(curves)),
            mean_of(curves, lambda c: c.objective[0]),
            mean_of(curves, lambda c: c.objective[c.returned]),
            mean_of(curves, lambda c: c.judge[0]),
            mean_of(curves, lambda c: c.judge[c.returned]),
            mean_of(curves, lambda c: c.distance[c.returned]),
            mean_of(curves, lambda c: c.quantile[-1]),
            mean_of(curves, lambda c: c.step_low[-1]),
            mean_of(curves, lambda c: c.cost[-1], 0),
            mean_of(curves, lambda c: c.seconds[-1], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_of(curves: Sequence[Curve], of: Callable[[Curve], float], digits: int = 2) -> str:
    values = [of(curve) for curve in curves]
    mean = sum(values) / len(values)
    return "-" if math.isnan(mean) else f"{mean:.{digits}f}"


def contrasts_table(results: Results, measures: Sequence[str] = PAGE_MEASURES) -> str:
    """Every contrast in a row: mean [95 % interval], bold where the interval leaves out 0."""
    head = ["contrast", "prompts x seeds", *measures]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for contrast in comparable(results):
        found = effects(results, contrast)
        some = found["reward returned"]
        names = [results.experiment.arm(name).label for name in (contrast.arm, contrast.against)]
        label = " - ".join(names)
        cells = [
            f"**{label}**" if contrast.primary else label,
            f"{some.prompts} x {some.pairs // max(some.prompts, 1)}",
            *(interval(found[name]) for name in measures),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(found: Effect) -> str:
    if math.isnan(found.mean):
        return "-"
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.sure else text


def trials_table(results: Results) -> str:
    """The mean reward returned of every trial on the development prompts."""
    lines = ["| arm | trials: knob -> reward gained | chosen |", "| --- | --- | --- |"]
    for arm in results.experiment.arms:
        tuned = results.tuned.get(arm.name)
        if tuned is None or not tuned.trials:
            continue
        tried = ", ".join(f"{trial.knob:g} -> {trial.gain:+.2f}" for trial in tuned.trials)
        edge = " (at the edge)" if tuned.at_the_edge else ""
        lines.append(f"| {arm.label} | {tried} | {tuned.knob:g}{edge} |")
    return "\n".join(lines)
