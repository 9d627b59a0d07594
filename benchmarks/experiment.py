"""Run one of the paper's experiments on the demo model; every one goes on where it was stopped.

    python benchmarks/experiment.py NAME [--quick] [--workers 2] [--report]

NAME: regularizer, black_box, eta, baselines, optimizers, or all. Results: benchmarks/results,
pages: docs/experiments.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

from checkout import map_pack

map_pack()  # also in the worker processes, which import this file

if __name__ == "__main__":
    from comfyui_dno.benchmarks.experiments.command import main

    sys.exit(main())
