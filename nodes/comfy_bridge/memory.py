"""What a run keeps of its denoiser graphs, by the memory there is; and less where it runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from .graph_room import block_room, plain_room

AUTO, STORE, RECOMPUTE, BLOCKS = POLICIES = ("auto", "store", "recompute", "recompute blocks")
"""auto: by blocks where not even one call's graph fits, and as many graphs kept as fit. store: as
many as fit. recompute: none is kept, every call is computed once more. recompute blocks: the same,
and within a call block by block."""

MEMORY_SHARE = 0.5
"""Of the free memory, for graphs that are kept: decoder and rewards need the rest."""

CPU_MEMORY_SHARE = 0.125
"""Of all main memory: other programs live there too."""

ESTIMATE_SHARE = 0.8
"""Of the free memory, for the one graph that every sweep needs, by an estimate."""


class GraphMemory:
    """The policy of one run. The choice changes neither pictures nor gradients, but for the
    rounding of a GPU's kernels.

    `by_blocks`: whether a call is recomputed block by block. `report` is told in a line whenever
    the choice changes. Raises ValueError for a policy that is not known.
    """

    def __init__(
        self,
        policy: str = RECOMPUTE,
        room: Callable[[], float] = lambda: 0.0,
        by_blocks: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`room` gives the bytes that kept graphs may take at the moment."""
        if policy not in POLICIES:
            raise ValueError(
                f"The graph memory '{policy}' is unknown. Use one of {', '.join(POLICIES)}."
            )
        self.by_blocks = policy == BLOCKS or (policy == AUTO and by_blocks)
        self.graph_bytes = 0
        self._stores = policy in (AUTO, STORE)
        self._room = room
        self._report = report
        self._fits: int | None = None

    @property
    def measures(self) -> bool:
        """Whether the size of a graph is still to be told."""
        return self._stores and self._fits is None

    def measured(self, size: int) -> None:
        """A graph of `size` bytes was built; the largest counts."""
        self.graph_bytes = max(self.graph_bytes, size)

    def keep(self, calls: int) -> int:
        """How many graphs of a forward run to keep, of `calls` that its sweep differentiates."""
        if not self._stores or not self.graph_bytes:
            return 0
        if self._fits is None:
            self._fits = int(self._room() / self.graph_bytes)
            if self._fits and calls:
                self._say(f"keeps the graphs of {min(self._fits, calls)} of {calls} denoiser calls")
        return min(self._fits, calls)

    def step_down(self, pulling: bool, kept: int) -> bool:
        """Memory ran out, `kept` graphs being alive: use less of it from now on.

        `pulling`: in a backward pass that could be done by blocks. False where nothing is left.
        """
        if kept:
            self._fits = kept // 2
            self._say(f"out of memory with {kept} graphs kept; keeps {self._fits} from here on")
        elif pulling and not self.by_blocks:
            self.by_blocks, self._stores = True, False
            self._say("out of memory; recomputes the model block by block from here on")
        else:
            return False
        return True

    @property
    def line(self) -> str:
        """The choice before the first gradient, for the forecast."""
        calls = "block by block" if self.by_blocks else "call by call"
        kept = ", keeps what fits" if self._stores else ""
        return f"recomputes the model {calls}{kept}"

    def _say(self, what: str) -> None:
        size = f" ({self.graph_bytes / 2**30:.2f} GB each)" if self.graph_bytes else ""
        self._report(f"memory: {what}{size}")


def graph_memory(
    policy: str, model: Any, shape: list[int], report: Callable[[str], None]
) -> GraphMemory:
    """The policy for latents [B,C,...] of a loaded model, on the device that it is on."""
    device = model.load_device
    return GraphMemory(policy, lambda: kept_room(device), not plain_fits(model, shape), report)


def kept_room(device: torch.device) -> float:
    """Bytes for graphs that are kept."""
    management = comfy.model_management
    if management.is_device_cpu(device):
        return CPU_MEMORY_SHARE * management.get_total_memory(device)
    return MEMORY_SHARE * management.get_free_memory(device)


def plain_fits(model: Any, shape: list[int], weights: int = 0) -> bool:
    """Whether one call's whole graph fits, by the estimate, beside `weights` still to be loaded."""
    free = comfy.model_management.get_free_memory(model.load_device)
    return plain_room(model, shape) <= ESTIMATE_SHARE * (free - weights)


def room_to_load(policy: str, model: Any, shape: list[int], companions: int) -> int:
    """Bytes to keep free for a graph while models are loaded: of a whole call, where that leaves
    room for all weights (`companions`: bytes of the other models), else of blocks."""
    if policy == BLOCKS:
        return block_room(model, shape)
    missing = max(int(model.model_size()) - int(model.loaded_size()), 0) + companions
    if policy == AUTO and not plain_fits(model, shape, missing):
        return block_room(model, shape)
    return plain_room(model, shape)
