"""What is measured, the most important first: a slow GPU gets less far in the same minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .targets import MEMORY
from .timing import Case


@dataclass(frozen=True)
class Rival:
    """A run of the published algorithm. autocast: with float16 autocast and its loss scaler, as
    the scripts run; else on half-precision weights as they are.
    """

    family: str
    steps: int
    precision: str
    autocast: bool

    @property
    def name(self) -> str:
        kind = "autocast" if self.autocast else "plain"
        return f"published {self.family} x {self.steps} {self.precision} {kind}"


def cases() -> Iterator[Case | Rival]:
    """Neighbours share a model where order allows it: building one takes seconds."""
    (small, _, long, small_gb), (large, _, short, large_gb) = MEMORY
    recompute, store = {"graph_memory": "recompute"}, {"graph_memory": "store"}
    blocks = {"graph_memory": "recompute blocks"}

    yield Case(small, long, "bf16", recompute)
    yield Case(small, long, "fp16", recompute)
    yield Case(small, long, "fp16")
    yield Rival(small, long, "fp16", autocast=True)
    yield Case(large, short, "bf16", recompute)
    yield Case(large, short, "bf16", limit_gb=large_gb)
    yield Case(small, long, "bf16", limit_gb=small_gb)
    yield Case(small, long, "bf16", store)
    yield Case(small, long, "bf16", blocks)
    yield Case(small, long, "bf16", {"gradient_mode": "spread k", "gradient_steps": 5})
    yield Case(small, long, "bf16", {"gradient_mode": "one step"})
    yield Case(small, long, "bf16", {"gradient_mode": "linear"})
    yield Case(small, long, "bf16", {"loop_decoder": "tiny VAE"})
    fast = {"gradient_mode": "one step", "optimize_steps": 10, "loop_decoder": "tiny VAE"}
    yield Case(small, long, "bf16", fast)
    yield Case(small, 20, "bf16")
    yield Case(small, 4, "bf16")
    yield Case(small, long, "bf16")
    yield Rival(small, long, "bf16", autocast=False)
    yield Case(small, 20, "bf16", reward="clip")
    yield Case(large, short, "bf16")
    yield Rival(large, short, "bf16", autocast=False)
    yield Case(large, short, "bf16", store)
    yield Case(large, short, "bf16", blocks)
    yield Case(large, short, "bf16", {"gradient_mode": "one step"})
    yield Case(large, short, "bf16", {"loop_decoder": "tiny VAE"})
    yield Case(large, 4, "bf16")
    yield Case(large, short, "fp16", recompute)
    yield Case(large, 50, "bf16", recompute)
