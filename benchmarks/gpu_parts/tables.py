"""The tables of a result file, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

DECODERS = {"full VAE": "full", "tiny VAE": "tiny"}


def tables(result: dict[str, Any]) -> str:
    """All of a result file as markdown. Raises ValueError for a dry run, which measured nothing."""
    if result.get("dry_run", True):
        raise ValueError("This file is of a dry run on a CPU: it holds no numbers to show.")
    device = result["device"]
    parts = [
        f"{device['name']}, {device['memory_gb']:g} GB, torch {device['torch']}, "
        f"ComfyUI {result['comfyui']}; models of the published size with random weights.",
        markdown(
            ("target", "measured", "met"),
            ((row["target"], row["measured"], _met(row["met"])) for row in result["targets"]),
        ),
        iteration_table(result),
    ]
    if result.get("published"):
        parts.append(published_table(result))
    if result.get("gradients"):
        parts.append(gradient_table(result))
    return "\n\n".join(parts) + "\n"


def iteration_table(result: dict[str, Any]) -> str:
    """Seconds, memory and share of the matrix peak of every case."""
    head = ("model", "steps", "precision", "gradient", "graphs", "decoder", "reward", "limit",
            "s / iteration", "peak GB", "matrix peak")  # fmt: skip
    return markdown(head, (_iteration(row) for row in result.get("iterations", [])))


def _iteration(row: dict[str, Any]) -> Sequence[str]:
    gradient = row.get("gradient_mode", "exact")
    if row.get("optimize_steps"):
        gradient += f", {row['optimize_steps']} steps"
    limit = row.get("limit_gb")
    return (
        row["family"],
        str(row["steps"]),
        row["precision"],
        gradient,
        row.get("graph_memory", "auto"),
        DECODERS[row.get("loop_decoder", "full VAE")],
        row["reward"],
        f"{limit:g} GB" if limit else "-",
        f"{row['seconds']:.3g}",
        f"{row['peak_gb']:.1f}",
        f"{row['matrix_share']:.0%}",
    )


def published_table(result: dict[str, Any]) -> str:
    """The published algorithm's seconds over ours, where both were measured."""
    head = ("model", "steps", "precision", "published, s", "published, GB", "ours, graphs",
            "ours, s", "times faster")  # fmt: skip
    return markdown(
        head,
        (
            (row["family"], str(row["steps"]), row["precision"], f"{row['seconds']:.3g}",
             f"{row['peak_gb']:.1f}", ours.get("graph_memory", "auto"), f"{ours['seconds']:.3g}",
             f"{row['seconds'] / ours['seconds']:.2f}")
            for row in result["published"]
            for ours in counterparts(row, result.get("iterations", []))
        ),
    )  # fmt: skip


def counterparts(row: dict[str, Any], iterations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our runs of the same model, steps and precision with the exact gradient."""
    same = ("family", "steps", "precision")
    plain = ("gradient_mode", "optimize_steps", "loop_decoder", "limit_gb")
    return [
        each
        for each in iterations
        if all(each[name] == row[name] for name in same)
        and not any(each.get(name) for name in plain)
        and each["reward"] == "pixels"
    ]


def gradient_table(result: dict[str, Any]) -> str:
    """Errors against central differences, or likeness to the reference; None: for information."""
    head = ("gradient", "off the slope", "cosine", "norm", "right", "note")
    return markdown(head, (_gradient(row) for row in result["gradients"]))


def _gradient(row: dict[str, Any]) -> Sequence[str]:
    errors = [row[name] for name in ("error_along", "error_half") if row.get(name) is not None]
    return (
        row["name"],
        f"{max(errors):.2%}" if errors else "-",
        f"{row['cosine']:.5f}" if row.get("cosine") is not None else "-",
        f"{row['norm_ratio']:.3f}" if row.get("norm_ratio") is not None else "-",
        _met(row["passed"]),
        row.get("note", ""),
    )


def _met(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[value]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are as wide as their cells."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
