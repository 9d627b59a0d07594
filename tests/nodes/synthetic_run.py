"""Trajectories of runs that never ran, through the core's own Recorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from comfyui_dno.dno_core import (
    Iteration,
    Recorder,
    Settings,
    TermInfo,
    Trajectory,
    TypicalityReading,
    weights_of,
)

BRIGHTNESS = TermInfo("brightness", "-1 to 1", 0.5, "maximize", 0.0, 1.0, False)
WATCHED = TermInfo("clip_score", "0 to 2.5", 0.1, "maximize", 0.0, 1.0, True)
SMALLER = TermInfo("jpeg_size", "bytes", 20_000.0, "minimize", 0.0, 2.0, False)
AIMED = TermInfo("contrast", "0 to 9", 1.0, "target", 2.5, 1.0, False)


def synthetic_run(
    terms: Sequence[TermInfo] = (BRIGHTNESS,),
    count: int = 5,
    batch: int = 1,
    *,
    score: Callable[[int, int, int], float] = lambda k, b, i: 0.1 * i,
    quantile: Callable[[int, int], float] = lambda b, i: 0.5,
    saturated: Callable[[int, int], float] = lambda b, i: 0.01,
    step_low: Callable[[int, int], float] | None = None,
    settings: Callable[[int], Settings] | None = None,
    start: int = 0,
    reason: str = "all iterations done",
    warnings: Sequence[str] = (),
) -> Trajectory:
    """`score` of (term, image, iteration); the other three of (image, iteration).

    Iteration i of image b is a uniform image of value (16 i + b) / 255 and a latent of i + b / 100.
    """
    recorder = Recorder(tuple(terms))
    images = range(batch)
    for i in range(start, start + count):
        level = torch.tensor([16 * i + b for b in images]).view(-1, 1, 1, 1) / 255
        place = torch.tensor([i + b / 100 for b in images]).view(-1, 1, 1, 1)
        scores = torch.tensor([[float(score(k, b, i)) for b in images] for k in range(len(terms))])
        share = torch.tensor([float(quantile(b, i)) for b in images])
        worst = None
        if step_low is not None:
            worst = torch.tensor([float(step_low(b, i)) for b in images])
        chosen = settings(i) if settings else Settings(0.01, 1.0, weights_of(terms))
        iteration = Iteration(
            index=i,
            z=torch.zeros(2, batch, 4, 2, 2),
            latent=place.expand(-1, 4, 2, 2),
            image=level.expand(-1, 3, 16, 16),
            scores=scores,
            objective=scores[0],
            saturated=torch.tensor([float(saturated(b, i)) for b in images]),
            typicality=TypicalityReading(torch.zeros(batch), share, step_low=worst),
            settings=chosen,
            update=None,
            seconds=2.0,
            optimizer_state={},
        )
        recorder.add(iteration, iteration.latent)
    return recorder.finish(reason, warnings, {"seed": 7, "cfg": 3.0})
