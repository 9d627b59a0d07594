"""A run in words and numbers: the text on the node, the node's output, what a failure means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..dno_core import NonFinite, Record, Recorder, Redraw, Trajectory


def summary(trajectory: Trajectory) -> dict[str, Any]:
    """The run in numbers (means over the batch), for the node's output and the demo's report.

    `reward_before` and `reward_after` are the first optimized term's score in iteration 0 and in
    the best, at full quality where they were drawn again (`redraw` then holds what they were in the
    run, and which images are their winner's); `scores` holds both for every term.
    `p_z_worst_step_percentile_after`: where the noise of the least likely step stands among such
    steps of plain noise; None if it was not measured.
    """
    chosen = [trajectory.records[i] for i in trajectory.best]
    first = trajectory.records[0]
    redraw = trajectory.redraw
    in_run = {
        "before": first.scores,
        "after": [[r.scores[k][b] for b, r in enumerate(chosen)] for k in range(len(first.scores))],
    }
    final = in_run if redraw is None else {"before": redraw.before, "after": redraw.scores}

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    scores = [
        {
            "name": term.name,
            "unit": term.unit,
            "before": mean(final["before"][k]),
            "after": mean(final["after"][k]),
            "watched": term.watch,
        }
        for k, term in enumerate(trajectory.terms)
    ]
    headline = next((score for score in scores if not score["watched"]), scores[0])
    row = scores.index(headline)
    return {
        "reward": headline["name"],
        "reward_before": headline["before"],
        "reward_after": headline["after"],
        "scores": scores,
        "iterations": len(trajectory.records) - 1,
        "best_iteration": list(trajectory.best),
        "redraw": None
        if redraw is None
        else {
            "reward_before_in_run": mean(in_run["before"][row]),
            "reward_after_in_run": mean(in_run["after"][row]),
            "winner": list(redraw.winners),
            "taken": list(redraw.taken),
            "seconds": redraw.seconds,
        },
        "seconds": sum(record.seconds for record in trajectory.records)
        + (0.0 if redraw is None else redraw.seconds),
        "p_z_before": mean([math.exp(log_p) for log_p in first.log_p]),
        "p_z_after": mean([math.exp(record.log_p[b]) for b, record in enumerate(chosen)]),
        "p_z_percentile_before": 100 * mean(first.quantile),
        "p_z_percentile_after": mean([100 * r.quantile[b] for b, r in enumerate(chosen)]),
        "p_z_worst_step_percentile_after": _worst_step(chosen),
        "stop_reason": trajectory.stop_reason,
        "screened_seeds": list(trajectory.meta.get("screened_seeds", ())),
        "gradient_cosine": list(trajectory.meta.get("gradient_cosine", ())),
        "warnings": list(trajectory.warnings),
    }


def status_line(
    recorder: Recorder, planned: int, seconds_left: float | None, warnings: tuple[str, ...]
) -> str:
    """Scores, P(z)'s percentile, best and forecast, as the text on the node."""
    record = recorder.records[-1]
    batch = len(record.quantile)
    scores = "  ".join(
        f"{term.name} {sum(row) / batch:.4g}"
        for term, row in zip(recorder.terms, record.scores, strict=True)
    )
    percentile = 100 * min(record.quantile)
    best = ", ".join(str(i) for i in sorted(set(recorder.best)))
    line = f"iteration {record.index}/{planned}  {scores}\nP(z) percentile {percentile:.1f} %"
    if record.step_low:
        line += f"  worst step {100 * min(record.step_low):.1f} %"
    line += f"  burnt out {100 * max(record.saturated):.0f} %  best: {best}"
    if seconds_left is not None and record.index < planned:
        line += f"  about {seconds_left:.0f} s left"
    return "\n".join([line, *(f"WARNING: {warning}" for warning in warnings)])


def redraw_lines(trajectory: Trajectory) -> list[str]:
    """What the redraw has shown: scores at full quality beside those of the run."""
    redraw = trajectory.redraw
    if redraw is None:
        return []
    first, batch = trajectory.records[0], trajectory.batch
    lines = []
    for k, term in enumerate(trajectory.terms):
        run = [trajectory.records[i].scores[k][b] for b, i in enumerate(redraw.winners)]
        rows = (redraw.before[k], redraw.after[k], first.scores[k], run)
        before, after, before_in_run, after_in_run = (sum(row) / batch for row in rows)
        lines.append(
            f"at full quality {term.name} {before:.4g} to {after:.4g} "
            f"(in the run {before_in_run:.4g} to {after_in_run:.4g})"
        )
    return [*lines, *lost_lines(redraw)]


def lost_lines(redraw: Redraw) -> list[str]:
    """Which images are no better at full quality than their first picture; none is [].

    The numbers count from 1.
    """
    lost = [str(image) for image, taken in enumerate(redraw.taken, 1) if not taken]
    if not lost:
        return []
    which = "" if len(redraw.taken) == 1 else f" of image {', '.join(lost)}"
    return [
        f"At full quality the winner{which} is below the first picture, which is returned. "
        "Raise optimize_steps or finish_iterations, or set loop_decoder to full VAE."
    ]


def bias_line(cosine: Sequence[float]) -> str:
    """How near the gradient of a biased mode is to the exact one; the lowest of the batch."""
    return f"gradient mode: cosine {min(cosine):.2f} with the exact gradient"


def redraw_failure_line(error: BaseException, means: str) -> str:
    """`means`: what the best was to be drawn with."""
    why = "Out of memory" if not isinstance(error, (NonFinite, OSError)) else str(error)
    return (
        f"The best could not be drawn again with {means}, and is returned as it was in the run. "
        f"{why.rstrip('.')}. Use a smaller image or batch, or set optimize_steps to 0."
    )


def _worst_step(chosen: Sequence[Record]) -> float | None:
    """Mean percentile over the images: `chosen[b]` is the record that image b takes."""
    if not all(record.step_low for record in chosen):
        return None
    return sum(100 * record.step_low[b] for b, record in enumerate(chosen)) / len(chosen)


def failure_line(error: BaseException, index: int) -> str:
    if isinstance(error, (NonFinite, OSError)):
        return f"Stopped at iteration {index}, the best before it is returned. {error}"
    return (
        f"Out of memory at iteration {index}; the best before it is returned. "
        "Use a smaller image or batch, fewer rewards, or the preset low VRAM."
    )
