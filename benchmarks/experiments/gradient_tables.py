"""The tables of the experiment on gradient modes: time to a gain, cosines, few steps and all."""

from __future__ import annotations

import json
from pathlib import Path

from .curves import Curve
from .gains import SHARE, Moment, moment, reach
from .running import Results

REFERENCE = "exact_50"
STEPS = ITERATIONS = 50
"""Of the reference."""

SHARES = (0.6, 0.7, 0.8, 0.85, 0.9)

COSINES, REDRAWS = "gradient_cosines.json", "coarse_scores.json"


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


def shares_table(results: Results) -> str:
    """What every arm costs until it has a share of the reference's gain; the judge there."""
    if REFERENCE not in results.curves:
        return ""
    reference = results.curves[REFERENCE]
    end = moment(reference, ITERATIONS)
    lines = [
        "### Cost to shares of that gain\n\nForward-equivalents (times cheaper than the reference "
        "at the same share; change of the judge's score).\n",
        f"| arm | {' | '.join(f'{share:.0%}' for share in SHARES)} |",
        "|" + " --- |" * (1 + len(SHARES)),
    ]
    for arm in results.experiment.arms:
        if arm.name not in results.curves:
            continue
        cells = []
        for share in SHARES:
            base = reach(reference, share * end.gain)
            found = reach(results.curves[arm.name], share * end.gain)
            if base is None or found is None:
                cells.append("-")
            else:
                ratio = base.cost / found.cost
                cells.append(f"{found.cost:.0f} ({ratio:.1f}; {found.judge:+.2f})")
        lines.append(f"| {arm.label} | {' | '.join(cells)} |")
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
