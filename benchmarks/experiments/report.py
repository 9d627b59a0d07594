"""The results of an experiment as files: two CSVs, a plot, and the numbers of its page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .compare import FEWEST_PROMPTS, Effect
from .files import write_atomically, write_text
from .plots import draw
from .running import Results
from .tables import (
    arms_table,
    comparable,
    contrasts_table,
    curves_csv,
    effects,
    interval,
    summary_csv,
    trials_table,
)

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


@dataclass(frozen=True)
class Places:
    """Where an experiment's files go: `units` are not kept in the repository."""

    units: Path
    results: Path
    pages: Path

    @staticmethod
    def under(root: Path) -> Places:
        results = root / "benchmarks" / "results"
        return Places(results / "units", results, root / "docs" / "experiments")


def write_report(results: Results, places: Places) -> None:
    """Write what there is; a page keeps all text that stands outside of the markers."""
    name = results.experiment.name
    if not results.curves:
        return
    write_text(places.results / f"{name}.csv", summary_csv(results))
    write_text(places.results / f"{name}_curves.csv", curves_csv(results))
    if any(arm in results.curves for figure in results.experiment.figures for arm in figure.arms):
        write_atomically(places.pages / f"{name}.png", lambda part: draw(results, part))
    page = places.pages / f"{name}.md"
    old = page.read_text(encoding="utf-8") if page.is_file() else f"# {results.experiment.title}\n"
    write_text(page, with_generated(old, generated(results)))


def with_generated(page: str, text: str) -> str:
    """The page with `text` between its markers, which are added at its end where there are none."""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def generated(results: Results) -> str:
    name = results.experiment.name
    parts = [
        f"Every number from here to the end of the tables was written by "
        f"`python benchmarks/experiment.py {name}`.",
        f"![Curves]({name}.png)",
        primary(results),
        "### Contrasts\n\nDifferences within pairs, mean and 95 % interval (bootstrap over "
        "prompts), bold where it leaves out 0. All but the primary one are exploratory and not "
        "corrected for their number. Rewards and judge in their own scales, costs in "
        "forward-equivalents.\n\n" + contrasts_table(results),
        "### Arms on the test prompts\n\n" + arms_table(results),
        results.experiment.extra(results) if results.experiment.extra else "",
        "### Trials on the development prompts\n\n" + trials_table(results),
    ]
    if results.missing:
        parts.append(f"Not finished: {', '.join(results.missing)}.")
    return "\n\n".join(part for part in parts if part)


def primary(results: Results) -> str:
    """The primary contrast in words, with the least effect that could have been seen."""
    found = [contrast for contrast in comparable(results) if contrast.primary]
    if not found:
        return ""
    contrast = found[0]
    arm, against = (results.experiment.arm(n).label for n in (contrast.arm, contrast.against))
    judge = effects(results, contrast)["judge at equal reward"]
    return (
        f"### Primary contrast\n\n**{arm}** minus **{against}**, judge's score at equal reward: "
        f"{interval(judge)} judge scales, {judge.prompts} prompts, {judge.pairs} pairs. "
        f"{verdict(judge)} The least effect that this design sees with 80 % power: "
        f"{judge.detectable:.2f}."
    )


def verdict(found: Effect) -> str:
    if math.isnan(found.mean):
        return "Nothing to compare."
    if found.prompts < FEWEST_PROMPTS:
        return "Too few prompts to say anything."
    if not found.sure:
        return "The interval holds 0: no difference was shown."
    side = "higher" if found.mean > 0 else "lower"
    return f"The interval leaves out 0: the judge's score is {side} at the 5 % level."
