"""The picture of an experiment: reward against cost, judge and distance against reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .curves import Curve
from .running import Results

PANELS = (
    ("cost", "reward", "cost (forward-equivalents)", "reward (scales)"),
    ("reward", "judge", "reward (scales)", "judge (scales)"),
    ("reward", "distance", "reward (scales)", "distance to plain samples"),
    ("cost", "quantile", "cost (forward-equivalents)", "P(z) quantile"),
)


def draw(results: Results, path: Path) -> None:
    """A row of panels a figure of the experiment; means over the cases that its arms share.

    For results that hold an arm of a figure at least.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [
        (figure, [name for name in figure.arms if name in results.curves])
        for figure in results.experiment.figures
    ]
    figures = [(figure, arms) for figure, arms in figures if arms]
    size = (4.2 * len(PANELS), 3.6 * len(figures))
    canvas, axes = pyplot.subplots(len(figures), len(PANELS), figsize=size, squeeze=False)
    for row, (figure, arms) in zip(axes, figures, strict=True):
        shared = set.intersection(*({c.case for c in results.curves[name]} for name in arms))
        means = {
            name: mean_curves([c for c in results.curves[name] if c.case in shared])
            for name in arms
        }
        for panel, (x, y, x_label, y_label) in zip(row, PANELS, strict=True):
            for index, (name, lines) in enumerate(means.items()):
                style = "-" if index < 10 else "--"
                label = results.experiment.arm(name).label
                panel.plot(lines[x], lines[y], style, label=label, linewidth=1.4)
            panel.set_xlabel(x_label)
            panel.set_ylabel(y_label)
            panel.grid(alpha=0.3)
        row[0].set_title(f"{figure.title}: means of {len(shared)} runs", loc="left")
        row[-1].legend(fontsize=7)
    canvas.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(canvas)


def mean_curves(curves: Sequence[Curve]) -> dict[str, np.ndarray]:
    """Means over runs, iteration by iteration; runs that ended early keep their last value."""
    length = max(len(curve) for curve in curves)

    def mean(column: str) -> np.ndarray:
        rows = []
        for curve in curves:
            values = getattr(curve, column)
            rows.append([*values, *[values[-1]] * (length - len(values))])
        return np.array(rows).mean(0)

    return {
        "cost": mean("cost"),
        "reward": mean("objective"),
        "judge": mean("judge"),
        "distance": mean("distance"),
        "quantile": mean("quantile"),
    }
