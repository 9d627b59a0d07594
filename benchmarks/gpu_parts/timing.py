"""One case: a run of DNO Sampler as the node makes it, timed from score to score."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .families import Family, conditioning
from .machine import GB, Machine
from .work import Calls, Flops

SEED, CFG, LEARNING_RATE = 5, 5.0, 0.01


@dataclass(frozen=True)
class Case:
    """What is measured. family: "SD1.5" | "SDXL". precision: "bf16" | "fp16" | "fp32".

    changes: fields of the node's Request, by name. limit_gb: memory the process may take.
    reward: "pixels", or "clip" for a full-size CLIP-L with random weights.
    """

    family: str
    steps: int
    precision: str
    changes: dict[str, Any] = field(default_factory=dict)
    limit_gb: float | None = None
    reward: str = "pixels"

    @property
    def name(self) -> str:
        limit = [f"within {self.limit_gb:g} GB"] if self.limit_gb else []
        chosen = [f"{key} {value}" for key, value in self.changes.items()]
        return ", ".join([f"{self.family} x {self.steps} {self.precision}", *chosen, *limit])

    @property
    def row(self) -> dict[str, Any]:
        """How the case is written down."""
        named = {"family": self.family, "steps": self.steps, "precision": self.precision}
        return {**named, **self.changes, "limit_gb": self.limit_gb, "reward": self.reward}

    @property
    def policy(self) -> str:
        return str(self.changes.get("graph_memory", "auto"))


@dataclass(frozen=True)
class Mark:
    """When a picture was scored: the clock, peak bytes and denoiser calls until then."""

    seconds: float
    peak: tuple[int, int]
    calls: tuple[int, int]


class Watch:
    """A reward that takes no memory and notes when it is asked. Satisfies the reward protocol."""

    name, unit, scale, differentiable = "watch", "unit", 1.0, True

    def __init__(self, machine: Machine, calls: Calls, inner: Any = None) -> None:
        self._machine, self._calls, self._inner = machine, calls, inner
        self.modules = () if inner is None else inner.modules
        self.marks: list[Mark] = []

    def score(self, images: Tensor, context: Any = None) -> Tensor:
        self._machine.wait()
        now = Mark(time.perf_counter(), self._machine.peak(), self._calls.seen())
        self.marks.append(now)
        return wavy(images) if self._inner is None else self._inner.score(images, context)


def wavy(images: Tensor) -> Tensor:
    """A score [B] whose gradient differs from pixel to pixel."""
    ramp = torch.linspace(0.5, 2.0, images[0].numel(), device=images.device).view(images[0].shape)
    return (torch.sin(7 * images) * ramp).flatten(1).mean(1)


def request(
    family: Family, model: Any, vae: Any, reward: Any, steps: int, context: Any = None, **more: Any
) -> Any:
    """What DNO Sampler's node asks for, with the paper's regularizer and without its check."""
    from comfyui_dno.dno_core import Term
    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.request import Request

    drawing = KSamplerDrawing(
        model=model,
        positive=conditioning(family, 1),
        negative=conditioning(family, 2),
        seed=SEED,
        steps=steps,
        cfg=CFG,
        scheduler="normal",
        denoise=1.0,
    )
    side = family.pixels // 8
    values: dict[str, Any] = {
        "drawing": drawing,
        "latent": {"samples": torch.zeros(1, 4, side, side)},
        "vae": vae,
        "terms": (Term(reward, context=context),),
        "iterations": 1,
        "learning_rate": LEARNING_RATE,
        "check_gradient": False,
        **more,
    }
    return Request(**values)


def measure(
    case: Case,
    steps: int,
    machine: Machine,
    parts: tuple[Family, Any, Any],
    flops: Flops,
    matrix_peak: float,
    seconds: float,
    inner: Any = None,
    context: Any = None,
) -> dict[str, Any]:
    """Median seconds of an iteration over `steps` steps (backward, optimizer step, forward, decode,
    score), the most memory that the process held from the start of the run to its last score, and
    the share of the matrix peak that the FLOPs of its calls make up. After `seconds` no iteration
    is begun.

    The decode of the returned picture, after the last score, is ComfyUI's own and left out.
    """
    from comfyui_dno.nodes import optimization

    family, model, vae = parts
    calls = Calls()
    watch = Watch(machine, calls, inner)
    limits = {"iterations": machine.iterations, "time_limit": seconds}
    asked = request(family, model, vae, watch, steps, context, **limits, **case.changes)
    machine.begin()
    with machine.limited(case.limit_gb), calls.counted(model.model.diffusion_model):
        trajectory = optimization.run(asked).trajectory
    marks = watch.marks[: len(trajectory.records)]
    reason = trajectory.stop_reason
    if len(marks) < 2:
        raise RuntimeError(f"The run ended before an iteration was complete: {reason}")
    taken = [b.seconds - a.seconds for a, b in pairwise(marks)]
    plain, with_graph = (
        after - before for before, after in zip(marks[-2].calls, marks[-1].calls, strict=True)
    )
    work = flops.iteration(plain, with_graph, case.policy == "recompute blocks")
    median = statistics.median(taken)
    allocated, reserved = marks[-1].peak
    return {
        "seconds": median,
        "iterations": len(taken),
        "peak_gb": allocated / GB,
        "reserved_gb": reserved / GB,
        "plain_calls": plain,
        "graph_calls": with_graph,
        "tflop": work / 1e12,
        "matrix_share": work / median / matrix_peak,
        "ended": reason,
        "complete": reason not in trajectory.warnings,
    }
