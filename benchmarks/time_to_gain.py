"""Seconds until the final picture is as good as most of what the exact gradient reaches.

    python benchmarks/time_to_gain.py [--quick] [--output FILE]

The reference: exact gradient, 50 iterations of 50 steps, CLIPScore climbed on the demo model for 10
test prompts. Timed is when each way has 90 % of its gain, drawn with all 50 steps and the full VAE,
redraws included; learning rates are those tuned on development prompts. The climbs are those of
`experiment.py gradient_modes`, and are made here where they are missing (an hour and more on one
core; a command that was stopped goes on). What an iteration takes is measured anew, arm by arm in
turns, in one process. `speed_up`: the reference's seconds to that gain over those of the fastest
way whose P(z) is typical in every picture, 0 where none gets there; `judge_minus_reference`: what
the judge says of those pictures against the reference's, mean and 95 % interval over prompts;
`speed_up_over_all_iterations`: over the reference's 50. `--quick`: two prompts, two iterations,
three steps, nothing kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

from checkout import ROOT, map_pack

map_pack()


def main() -> None:
    from comfyui_dno.benchmarks.experiments.plan import load
    from comfyui_dno.benchmarks.experiments.quick import PLAIN_SAMPLES, quick
    from comfyui_dno.benchmarks.experiments.timing import TURNS, measured
    from comfyui_dno.benchmarks.writing import machine, rounded, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--output", type=Path, default=results / "time_to_gain.json")
    given = parser.parse_args()
    experiment = load("gradient_modes")
    if given.quick:
        with tempfile.TemporaryDirectory(prefix="dno-quick-") as scratch:
            found = measured(quick(experiment), Path(scratch) / "units", PLAIN_SAMPLES, 1)
    else:
        found = measured(experiment, results / "units", 16, TURNS)
    result = {"command": "python benchmarks/time_to_gain.py", **machine(), **rounded(found)}
    write(given.output, result)
    for row in result["arms"].values():
        print(row)
    print(f"{result['best']}: {result['speed_up']} times as fast", flush=True)


if __name__ == "__main__":
    main()
