"""What the GPU has to show, judged from a result."""

from __future__ import annotations

from typing import Any

from .tables import counterparts

SPEEDUP = 2.0
MEMORY = (("SD1.5", 512, 50, 8.0), ("SDXL", 1024, 20, 11.0))
"""Model, pixels, steps, GB."""


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of target, what was measured and whether it is met (None: not measured)."""
    iterations = [row for row in result.get("iterations", []) if row["seconds"] is not None]
    rows = []
    for family, pixels, steps, limit in MEMORY:
        title = f"{family} at {pixels}, {steps} steps, exact gradient: under {limit:g} GB"
        cases = [row for row in iterations if (row["family"], row["steps"]) == (family, steps)]
        plain = [
            row
            for row in cases
            if row.get("graph_memory") == "recompute" and not row.get("gradient_mode")
        ]
        rows.append(_memory(title, limit, plain))
        held = [row for row in cases if row["limit_gb"] == limit]
        failed = any(
            each["name"].startswith(f"{family} x {steps} ")
            and each["name"].endswith(f"within {limit:g} GB")
            for each in result["failures"]
        )
        rows.append(_held(title.replace(": under", ": auto runs within"), limit, held, failed))
    rows.append(_speed(result, iterations))
    return rows


def _memory(title: str, limit: float, cases: list[dict[str, Any]]) -> dict[str, Any]:
    if not cases:
        return {"target": title, "measured": "not measured", "met": None}
    most = max(row["peak_gb"] for row in cases)
    return {"target": title, "measured": f"{most:.1f} GB", "met": most < limit}


def _held(title: str, limit: float, cases: list[dict[str, Any]], failed: bool) -> dict[str, Any]:
    if not cases:
        measured = "it failed" if failed else "not measured"
        return {"target": title, "measured": measured, "met": False if failed else None}
    row = cases[0]
    return {
        "target": title,
        "measured": f"{row['reserved_gb']:.1f} GB taken, {row['seconds']:.3g} s an iteration",
        "met": row["reserved_gb"] <= limit and row["complete"],
    }


def _speed(result: dict[str, Any], iterations: list[dict[str, Any]]) -> dict[str, Any]:
    title = f"at least {SPEEDUP:g} times the published algorithm, exact gradient"
    ratios = {
        (row["family"], row["steps"], row["precision"], ours.get("graph_memory", "auto")): (
            row["seconds"] / ours["seconds"]
        )
        for row in result.get("published", [])
        if row["seconds"] is not None
        for ours in counterparts(row, iterations)
    }
    if not ratios:
        return {"target": title, "measured": "not measured", "met": None}
    chosen = [ratio for (*_, policy), ratio in ratios.items() if policy == "auto"]
    said = ", ".join(
        f"{family} x {steps} {precision} {policy}: {ratio:.2f}"
        for (family, steps, precision, policy), ratio in ratios.items()
    )
    met = min(chosen) >= SPEEDUP if chosen else None
    return {"target": title, "measured": said, "met": met}
