"""The learning rate over a run: warm-up, then constant or cosine."""

from __future__ import annotations

import math

DECAYS = ("constant", "cosine")


def learning_rate_at(
    index: int, base: float, warmup: int = 0, horizon: int = 0, decay: str = "constant"
) -> float:
    """The learning rate of the step that follows iteration `index`.

        warm-up   base (i + 1) / (w + 1)                            for i < w = warmup
        constant  base                                              for i >= w
        cosine    base (1 + cos(pi (i - w) / (horizon - w))) / 2    for w <= i < horizon, then 0

    `horizon` is the number of iterations of the whole run, so the last step (i = horizon - 1) is
    small and not 0. Raises ValueError for an unknown decay and for negative counts.
    """
    if decay not in DECAYS:
        raise ValueError(f"The decay '{decay}' is unknown. Use one of {DECAYS}.")
    if min(index, warmup, horizon) < 0:
        raise ValueError(
            f"Iteration {index}, warm-up {warmup} and horizon {horizon} are counts. "
            "Give none below 0."
        )
    if index < warmup:
        return base * (index + 1) / (warmup + 1)
    if decay == "constant":
        return base
    if index >= horizon:
        return 0.0
    return base * (1 + math.cos(math.pi * (index - warmup) / (horizon - warmup))) / 2
