"""A trajectory as a chart: every reward's score, P(z)'s percentile, the saturated share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase

from ..dno_core.objective import TermInfo
from ..dno_core.probability.typicality import TYPICAL
from ..dno_core.trajectories.trajectory import Record, Trajectory
from .chart import (
    BLUE,
    BROWN,
    GREEN,
    GREEN_FILL,
    INK,
    ORANGE,
    ORANGE_FILL,
    PURPLE,
    Chart,
    Note,
    Panel,
)
from .chart_axis import Axis, linear_axis, number

RESOLVED = 0.001
"""Quantiles of P(z) below this one rest on few simulated draws and are shown as one."""
FLOOR = RESOLVED / 2
"""Where such a quantile is drawn."""
LISTED_CHANGES = 8
TICK_ROOM = 20
META_SHOWN = ("seed", "steps", "cfg", "scheduler", "denoise", "eta", "optimizer")


def reward_curve(trajectory: Trajectory) -> Chart:
    """The chart of a run. Bold lines are means over the batch, thin ones its images."""
    records = trajectory.records
    low = len(trajectory.terms) > 3
    panels = [
        _score_panel(trajectory, k, 104 if low else 124) for k in range(len(trajectory.terms))
    ]
    changes = _changes(trajectory)
    return Chart(
        title=f"{_count(len(records) - 1, 'iteration')} in "
        f"{duration(sum(record.seconds for record in records))}",
        lines=(_ending(trajectory), *_redrawn(trajectory), _meta(trajectory)),
        x=tuple(record.index for record in records),
        x_label="iteration",
        panels=(*panels, _percentile_panel(trajectory), _saturated_panel(trajectory)),
        warnings=trajectory.warnings,
        changes=tuple(
            (index, ascii_lowercase[i] if i < LISTED_CHANGES else "")
            for i, (index, _) in enumerate(changes)
        ),
        footnotes=_footnotes(changes),
    )


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 63 s, 4 min 12 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _ending(trajectory: Trajectory) -> str:
    """How the run ended, and what the lines and dots are."""
    reason = trajectory.stop_reason
    ended = "Stopped early." if reason in trajectory.warnings else f"Ended: {reason}."
    chosen = sorted({trajectory.records[i].index for i in trajectory.best})
    if trajectory.batch == 1:
        return f"{ended} Dot: the best iteration, {chosen[0]}."
    spread = str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]} to {chosen[-1]}"
    return (
        f"{ended} Thin: each of {trajectory.batch} images. Bold: their mean. "
        f"Dots: the best iteration of each, {spread}."
    )


def _redrawn(trajectory: Trajectory) -> tuple[str, ...]:
    """What the result scores at full quality, where the curves show less."""
    redraw = trajectory.redraw
    if redraw is None:
        return ()
    rows = zip(trajectory.terms, redraw.before, redraw.scores, strict=True)
    said = [f"{t.name} {_short(_mean(a))} to {_short(_mean(b))}" for t, a, b in rows]
    return (f"At full quality, from the first picture to the result: {', '.join(said)}.",)


def _meta(trajectory: Trajectory) -> str:
    known = [key for key in META_SHOWN if key in trajectory.meta]
    return ", ".join(f"{key} {_short(trajectory.meta[key])}" for key in known)


def _score_panel(trajectory: Trajectory, k: int, height: int) -> Panel:
    term, records = trajectory.terms[k], trajectory.records
    lines = tuple(zip(*(record.scores[k] for record in records), strict=True))
    chosen = [lines[b][i] for b, i in enumerate(trajectory.best)]
    first = records[0].scores[k]
    guides = (term.target,) if term.goal == "target" and not term.watch else ()
    gains = [_aim(term, v) - _aim(term, u) for u, v in zip(first, chosen, strict=True)]
    gain = round(_mean(gains) / term.scale, 1) + 0.0
    axis = linear_axis([*_flat(lines), *guides], 0.1 * term.scale, height // TICK_ROOM)
    colour = PURPLE if term.watch else BLUE
    readings = (("start", first), ("best", chosen), ("last", records[-1].scores[k]))
    return Panel(
        title=term.name,
        unit=term.unit,
        lines=lines,
        mean=_means(lines),
        axis=axis,
        colour=colour,
        marks=trajectory.best,
        notes=(
            Note(_role(term, records[-1].settings.weights[k]), colour=colour),
            *(Note(number(_mean(v), axis.step / 20), label) for label, v in readings),
            Note(f"{gain:+.1f} x usual spread", "gain"),
        ),
        guides=guides,
        height=height,
    )


def _percentile_panel(trajectory: Trajectory) -> Panel:
    records = trajectory.records
    shares = tuple(zip(*(record.quantile for record in records), strict=True))
    lines = tuple(tuple(math.log10(max(q, FLOOR)) for q in line) for line in shares)
    steps = [min(record.step_low, default=math.nan) for record in records]
    worst = tuple(math.log10(max(q, FLOOR)) if q == q else q for q in steps)
    chosen = [shares[b][i] for b, i in enumerate(trajectory.best)]
    edge, bottom = math.log10(TYPICAL), math.log10(FLOOR) - 0.15
    ticks = (
        (0.0, "100 %"),
        (-1.0, "10 %"),
        (edge, f"{100 * TYPICAL:g} %"),
        (math.log10(FLOOR), f"< {100 * RESOLVED:g} %"),
    )
    gamma = records[-1].settings.gamma
    lowest = " (lowest)" if trajectory.batch > 1 else ""
    readings = (("start", records[0].quantile), ("best", chosen), ("last", records[-1].quantile))
    return Panel(
        title="P(z), percentile",
        unit="how likely the noise is, among noise of plain samples; green is typical",
        lines=lines,
        mean=_means(lines),
        axis=Axis(bottom, 0.12, ticks),
        colour=GREEN,
        marks=trajectory.best,
        notes=(
            Note(f"regularizer, gamma {gamma:g}" if gamma else "no penalty", colour=GREEN),
            *(Note(_percent(min(v)) + lowest, label, _alarm(min(v))) for label, v in readings),
            *_worst_step(steps[-1]),
        ),
        low_note=Note(f"unlikely noise: under {100 * TYPICAL:g} %", colour=ORANGE),
        bands=((edge, 0.12, GREEN_FILL), (bottom, edge, ORANGE_FILL)),
        thin=(worst,),
        height=140,
    )


def _worst_step(quantile: float) -> tuple[Note, ...]:
    """What the thin grey line ended at, where steps were measured."""
    if math.isnan(quantile):
        return ()
    return (Note(_percent(quantile), "worst step", _alarm(quantile)),)


def _saturated_panel(trajectory: Trajectory) -> Panel:
    records = trajectory.records
    lines = tuple(zip(*(record.saturated for record in records), strict=True))
    chosen = [lines[b][i] for b, i in enumerate(trajectory.best)]
    readings = (("start", records[0].saturated), ("best", chosen), ("last", records[-1].saturated))
    return Panel(
        title="saturated pixels",
        unit="share of values burnt out, at pure black or white of a channel",
        lines=lines,
        mean=_means(lines),
        axis=linear_axis(_flat(lines), 0.05, 84 // TICK_ROOM, floor=0.0, percent=True),
        colour=BROWN,
        marks=trajectory.best,
        notes=tuple(Note(f"{100 * _mean(v):.1f} %", label) for label, v in readings),
        height=84,
    )


def _changes(trajectory: Trajectory) -> list[tuple[int, str]]:
    """(iteration, words) wherever the settings differ from those of the record before.

    A learning rate that follows its own warm-up or decay is no change.
    """
    records, meta = trajectory.records, trajectory.meta
    decays = meta.get("decay", "constant") != "constant"
    found = []
    for before, now in zip(records, records[1:], strict=False):
        scheduled = decays or now.index <= meta.get("warmup", 0)
        words = _difference(trajectory.terms, before, now, scheduled)
        if words:
            found.append((now.index, ", ".join(words)))
    return found


def _difference(
    terms: Sequence[TermInfo], before: Record, now: Record, scheduled: bool
) -> list[str]:
    a, b = before.settings, now.settings
    pairs = [
        *([] if scheduled else [("learning rate", a.learning_rate, b.learning_rate)]),
        ("gamma", a.gamma, b.gamma),
        ("gradient clip", a.clip, b.clip),
        *(
            (f"weight of {t.name}", v, w)
            for t, v, w in zip(terms, a.weights, b.weights, strict=True)
        ),
    ]
    return [f"{name} {old:g} to {new:g}" for name, old, new in pairs if old != new]


def _footnotes(changes: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    listed = [
        f"{letter}: iteration {index}, {words}"
        for letter, (index, words) in zip(ascii_lowercase, changes[:LISTED_CHANGES], strict=False)
    ]
    more = len(changes) - len(listed)
    return (*listed, f"and {_count(more, 'more change')} of settings") if more else tuple(listed)


def _role(term: TermInfo, weight: float) -> str:
    if term.watch:
        return "watched, not optimized"
    goal = f"target {_short(term.target)}" if term.goal == "target" else term.goal
    return f"{goal}, weight {weight:g}"


def _aim(term: TermInfo, score: float) -> float:
    if term.goal == "target":
        return -abs(score - term.target)
    return -score if term.goal == "minimize" else score


def _alarm(quantile: float) -> str:
    return INK if quantile > TYPICAL else ORANGE


def _percent(quantile: float) -> str:
    return f"{100 * quantile:.1f} %" if quantile >= RESOLVED else f"< {100 * RESOLVED:g} %"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return str(value)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _means(lines: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(_mean(column) for column in zip(*lines, strict=True))


def _flat(lines: Sequence[Sequence[float]]) -> list[float]:
    return [value for line in lines for value in line]
