"""The graph of one call, kept until it is pulled back once: a backward without a recomputation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from .saved import Ledger, Overwritten, let_go

if TYPE_CHECKING:
    from .sampler import Path


WRITTEN = "modified by an inplace operation"
"""Of autograd's message where a version counter says that a saved tensor was written to."""


class Graph:
    """f's value at some inputs, and the graph behind it.

    Nothing is recomputed in `pull`, so a kept graph saves one call; it holds the memory of all
    that f computed until then. `before` runs as the pull begins, and may raise.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        ledger: Ledger,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """To be called inside `ledger.watching()`. The ledger may be shared by several graphs."""
        self._ledger = ledger
        self._before = before
        self._leaves = [x.detach().requires_grad_(True) for x in inputs]
        self._out: Tensor | None = None
        with torch.enable_grad(), ledger.saving() as self._saved:
            out = function(*self._leaves)
        self._out, self.value = out, out.detach()

    def pull(self, v: Tensor) -> list[Tensor]:
        """J^T v for every input: zeros where it is not used, or where f detaches its result.

        The graph is gone afterwards, also where an error is raised.
        """
        out, leaves = self._out, self._leaves
        self._out = None
        if out is None:
            raise RuntimeError("A graph can be pulled back once, and this one was.")
        try:
            self._before()
            if not out.requires_grad:
                return [torch.zeros_like(x) for x in leaves]
            with self._ledger.watching():
                pulled = torch.autograd.grad(out, leaves, v.to(out), allow_unused=True)
        except RuntimeError as error:
            if self._ledger.trusts and WRITTEN in str(error):
                raise Overwritten(str(error)) from error
            raise
        finally:
            self.drop()
        return [
            torch.zeros_like(x) if g is None else g.detach()
            for g, x in zip(pulled, leaves, strict=True)
        ]

    def drop(self) -> None:
        """Free the graph; `value` stays."""
        self._out, self._leaves = None, []
        let_go(self._saved)

    __del__ = drop


@runtime_checkable
class KeepingMap(Protocol):
    """A NoiseMap that can keep graphs in its forward run, where a pull is to follow.

    The values are those of `forward`; how many graphs are kept is for the map to choose.
    """

    def forward_to_pull(self, z: Tensor) -> Path: ...


def forward_to_pull(noise_map: object, z: Tensor) -> Path:
    """The map's forward run of z with graphs kept, if it knows how, else the plain one."""
    if isinstance(noise_map, KeepingMap):
        return noise_map.forward_to_pull(z)
    path: Path = noise_map.forward(z)  # type: ignore[attr-defined]
    return path
