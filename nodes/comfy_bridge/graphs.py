"""The denoiser graphs of a run: kept, measured, recomputed by blocks, and let go of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar
from weakref import ref

import comfy.model_management
from torch import Tensor

from ...dno_core import CoarseMap, Evaluation, LateMap, NoiseMap, Path, Problem
from ...dno_core.noise_map.recompute import Recomputation
from ...dno_core.noise_map.saved import Care, saving_ledger
from .blocks import block_recomputation
from .loading import is_out_of_memory
from .memory import GraphMemory

Result = TypeVar("Result")


class CallGraphs:
    """What a map, its coarse one and their copies in other modes do with the graphs of calls."""

    def __init__(self, guider: Any, memory: GraphMemory) -> None:
        self.memory = memory
        self.care = Care()
        self._guider = guider
        self._latest: Callable[[], Path | None] = lambda: None
        self._kept = 0
        self._at_work = False
        self._by_blocks = False

    def keep(self, calls: int) -> int:
        """How many graphs the next forward run keeps, of `calls` that are differentiated; what an
        earlier one kept and nobody used is freed.

        None where hooks change weights between calls, behind the back of what was saved.
        """
        self._drop()
        hooked = any(entry.get("hooks") for entry in chain(*self._guider.conds.values()))
        self._kept = 0 if hooked else self.memory.keep(calls)
        return self._kept

    def note(self, path: Path) -> None:
        """A forward run has kept the path's graphs."""
        self._latest = ref(path)

    def begin(self, kept: bool) -> None:
        """Before one call's graph is pulled back or, not `kept`, recomputed."""
        self._at_work = kept
        if kept:
            self._kept -= 1

    def blocks(self) -> AbstractContextManager[None]:
        """A place for one call that is differentiated: by blocks, where memory asks for it."""
        self._by_blocks = self.memory.by_blocks and self._recomputation is not None
        if self._recomputation is None or not self._by_blocks:
            return nullcontext()
        return self._recomputation.installed()

    def found_leaks(self) -> bool:
        """Whether the call has to be done once more, as a block of it cannot be recomputed."""
        return (
            self._recomputation is not None
            and self._by_blocks
            and (self._recomputation.found_leaks())
        )

    def measure(self) -> None:
        """After a call whose graph is being built: how large it is, as long as that matters."""
        ledger = saving_ledger()
        if ledger is not None and self.memory.measures:
            self.memory.measured(ledger.bytes_saved(self._weights))

    def step_down(self, pulling: bool) -> bool:
        """Memory ran out: let go of what is kept, and need less. False where that is impossible."""
        alive = self._kept + self._at_work
        self._drop()
        divisible = pulling and self._recomputation is not None
        lighter = self.memory.step_down(divisible, alive)
        if self.memory.by_blocks:  # which is done by watched graphs
            self.care.distrust()
        return lighter

    def _drop(self) -> None:
        path = self._latest()
        if path is not None:
            path.drop()
        self._latest, self._kept, self._at_work = lambda: None, 0, False

    @cached_property
    def _recomputation(self) -> Recomputation | None:
        return block_recomputation(self._guider)

    @cached_property
    def _weights(self) -> set[int]:
        """Addresses of the weights of all models in use: not the graphs' own memory."""
        patchers = comfy.model_management.loaded_models(only_currently_used=True)
        modules = [patcher.model for patcher in patchers if not patcher.is_dynamic()]
        tensors = chain.from_iterable(
            chain(module.parameters(), module.buffers()) for module in modules
        )
        plain = (each for each in tensors if not hasattr(each, "__tensor_flatten__"))
        return {each.untyped_storage().data_ptr() for each in plain}


def graphs_of(noise_map: NoiseMap) -> CallGraphs | None:
    """Of a map on a ComfyUI model, coarse, late or whole; None for any other."""
    inner = noise_map.inner if isinstance(noise_map, (CoarseMap, LateMap)) else noise_map
    graphs = getattr(inner, "graphs", None)
    return graphs if isinstance(graphs, CallGraphs) else None


class SteadyProblem(Problem):
    """A problem that goes on with less memory where it runs out, with the same result."""

    def evaluate(
        self, z: Tensor, weights: Sequence[float], differentiate: bool = False
    ) -> Evaluation:
        return self._retried(
            lambda: Problem.evaluate(self, z, weights, differentiate), pulling=False
        )

    def gradient(self, z: Tensor, evaluation: Evaluation, image_gradient: Tensor) -> Tensor:
        return self._retried(
            lambda: Problem.gradient(self, z, evaluation, image_gradient), pulling=True
        )

    def _retried(self, attempt: Callable[[], Result], pulling: bool) -> Result:
        graphs = graphs_of(self.noise_map)
        while True:
            try:
                return attempt()
            except Exception as error:
                lighter = is_out_of_memory(error) and graphs is not None
                if graphs is None or not (lighter and graphs.step_down(pulling)):
                    raise
            comfy.model_management.soft_empty_cache()  # now that the error holds nothing any more
