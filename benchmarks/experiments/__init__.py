"""The paper's experiments on the demo model: fair, resumable, on a CPU.

    python benchmarks/experiment.py NAME [--quick] [--workers 2]

An experiment is a module of this package that defines `EXPERIMENT` (see `plan`). What it runs is
cut into units (`units`), each a file; the numbers of its page in docs/experiments come from those
files alone.
"""

from __future__ import annotations

NAMES = ("regularizer", "optimizers", "eta", "baselines", "black_box", "gradient_modes")
"""In the order in which `all` runs them."""
