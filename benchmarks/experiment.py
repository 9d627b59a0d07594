"""Run one of the paper's experiments on the demo model; every one goes on where it was stopped.

    python benchmarks/experiment.py NAME [--quick] [--workers 2] [--report]

NAME: regularizer, black_box, eta, baselines, optimizers, or all. Results: benchmarks/results,
pages: docs/experiments.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the demo model is too small for more

ROOT = Path(__file__).resolve().parent.parent


def map_pack() -> None:
    """Import the checkout as the package comfyui_dno, also in the worker processes."""
    spec = importlib.util.spec_from_file_location(
        "comfyui_dno", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_dno"] = pack
    spec.loader.exec_module(pack)


if "comfyui_dno" not in sys.modules:
    map_pack()

if __name__ == "__main__":
    from comfyui_dno.benchmarks.experiments.command import main

    sys.exit(main())
