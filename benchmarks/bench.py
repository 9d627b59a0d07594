"""Every benchmark that the README claims something from, one after another, and one table.

    python run.py bench [--quick] [--only a c]

(a) an iteration against the published algorithm, (b) the time to a better picture, (c) peak
memory, (d) the regularizer, (e) the rewards. Each is a script that also runs alone and writes its
numbers to benchmarks/results. All of them take hours on two cores, most of it in (b) and (e).
`--quick` runs each in small, some seconds each, and keeps nothing: it shows that they work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


class Row(NamedTuple):
    """One line of the table. `met` says whether `target` is; None where there is none."""

    what: str
    found: str
    target: str = "-"
    met: bool | None = None


@dataclass(frozen=True)
class Part:
    """A benchmark: a script, its arguments in full (several runs of it) and in small, what it
    leaves in `result`, and that as rows."""

    title: str
    script: str
    result: str
    rows: Callable[[dict[str, Any]], list[Row]]
    full: tuple[tuple[str, ...], ...] = ((),)
    quick: tuple[str, ...] = ("--quick",)


def iteration_rows(result: dict[str, Any]) -> list[Row]:
    return [
        at_least(f"published / ours, {steps} steps, graphs: {policy}", found["ratio"], 2.0)
        for steps, policies in result["steps"].items()
        for policy, found in policies.items()
    ]


def memory_rows(result: dict[str, Any]) -> list[Row]:
    steps = list(next(iter(result["over_steps"].values()))["mb"])
    rows = []
    for policy, found in result["over_steps"].items():
        what = f"peak at {steps[-1]} steps / at {steps[0]}, {policy}"
        ratio = found["ratio"]
        if policy.startswith("recompute"):
            rows.append(Row(what, f"{ratio:.2f}", "at most 1.1", ratio <= 1.1))
        else:
            rows.append(Row(what, f"{ratio:.2f}"))
    return rows


def gain_rows(result: dict[str, Any]) -> list[Row]:
    return [at_least("seconds to 90 % of the gain, exact / best preset", result["speed_up"], 5.0)]


def regularizer_rows(result: dict[str, Any]) -> list[Row]:
    cost = result["cost"]
    return [
        Row(f"loop / ours, {family} permutations", f"{cost[f'ratio_{family}']:.3g}")
        for family in ("structured", "uniform")
    ]


def reward_rows(result: dict[str, Any]) -> list[Row]:
    """The dearest, in runs of the demo model: what a reward adds to an iteration at most."""
    costs = {
        name: rows["512"]["gradient_ms"] or rows["512"]["score_ms"]
        for name, rows in result["rewards"].items()
    }
    name = max(costs, key=lambda each: costs[each])
    return [
        Row("rewards measured", str(len(costs))),
        Row(f"the dearest, {name}, at 512", f"{costs[name]:.3g} ms"),
    ]


def at_least(what: str, value: float, target: float) -> Row:
    return Row(what, f"{value:.3g}", f"at least {target:g}", value >= target)


PARTS = {
    "a": Part("an iteration", "iteration.py", "iteration.json", iteration_rows),
    "b": Part("time to a better picture", "time_to_gain.py", "time_to_gain.json", gain_rows),
    "c": Part("memory", "memory.py", "memory.json", memory_rows),
    "d": Part(
        "the regularizer",
        "regularizer.py",
        "regularizer.json",
        regularizer_rows,
        full=((), ("--power",)),
    ),
    "e": Part(
        "the rewards",
        "rewards.py",
        "rewards.json",
        reward_rows,
        full=(("--full",),),
        quick=("--quick", "--only", "brightness", "clip_score (demo reward)"),
    ),
}


def run_part(part: Part, quick: bool) -> list[Row]:
    """Runs its script and reads what it left; a failure is a row too."""
    settings = dict(os.environ, OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if quick else RESULTS) / part.result
        for arguments in (part.quick,) if quick else part.full:
            command = [sys.executable, str(HERE / part.script), *arguments, "--output", str(file)]
            done = subprocess.run(command, cwd=HERE.parent, env=settings)
            if done.returncode:
                return [Row(part.script, f"ended with {done.returncode}", "0", False)]
        return part.rows(json.loads(file.read_text(encoding="utf-8")))


def table(found: dict[str, list[Row]]) -> str:
    """Every row with its benchmark, in columns."""
    marks = {None: "", True: "met", False: "MISSED"}
    lines = [("", "", "found", "target", "")]
    for key, rows in found.items():
        lines += [(f"({key})", row.what, row.found, row.target, marks[row.met]) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each in small; keeps nothing")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args(arguments)
    found: dict[str, list[Row]] = {}
    for key in given.only:
        print(f"\n({key}) {PARTS[key].title}", flush=True)
        found[key] = run_part(PARTS[key], given.quick)
    print(f"\n{table(found)}")
    if given.quick:
        print("In small: these numbers mean nothing.")
        return int(any(row.found.startswith("ended") for rows in found.values() for row in rows))
    return int(any(row.met is False for rows in found.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
