"""The command: which experiments, how many processes, where the files go."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import NAMES
from .plan import Experiment, load
from .quick import PLAIN_SAMPLES, quick
from .report import Places, write_report
from .running import do, gather
from .units import Units

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiment.py",
        description="Run an experiment on the demo model, or go on with it where it stopped.",
    )
    parser.add_argument("name", choices=[*NAMES, "all"])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument(
        "--quick", action="store_true", help="2 prompts, 2 iterations, 3 steps; nothing is kept"
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write the pages from what is there"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files go (default: this repository)"
    )
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is missing, which draws the plots. Install it with pip.")
    experiments = [load(name) for name in (NAMES if given.name == "all" else (given.name,))]
    if given.quick:
        with tempfile.TemporaryDirectory(prefix="dno-quick-") as scratch:
            small = [quick(experiment) for experiment in experiments]
            places = Places.under(given.folder or Path(scratch))
            return run(small, places, given.workers, PLAIN_SAMPLES)
    places = Places.under(given.folder or ROOT)
    if not given.report:
        return run(experiments, places, given.workers)
    with Units(places.units) as units:
        for experiment in experiments:
            write_report(gather(experiment, units), places)
    return 0


def run(
    experiments: Sequence[Experiment], places: Places, workers: int, plain_samples: int = 16
) -> int:
    """All arms of rank 0 of every experiment, then rank 1, and so on. Returns the exit status."""
    ranks = sorted({arm.rank for experiment in experiments for arm in experiment.arms})
    failed: dict[str, str] = {}
    for experiment in experiments:
        if experiment.measure is not None:
            experiment.measure(places.results)
    with Units(places.units, workers, plain_samples) as units:
        for rank, experiment in itertools.product(ranks, experiments):
            if any(arm.rank == rank for arm in experiment.arms):
                print(f"{experiment.name}, rank {rank}", file=sys.stderr, flush=True)
                failed.update(do(experiment, units, rank))
                write_report(gather(experiment, units), places)
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0
