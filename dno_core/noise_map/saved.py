"""Tensors saved for backward, kept as they were although the model modifies them in place.

`torch.autograd.graph.allow_mutation_on_saved_tensors` has the same purpose, but knows a saved
tensor by its Python id, address and version. All three can come again once a cloned original is
freed; then a new tensor silently gets an old one's value (seen with ControlNets, whose outputs
are scaled in place). Here every saved tensor has a handle of its own, and a write clones all
handles that share its storage, overlapping views included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Saved:
    """One tensor saved for backward; it lives as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor


class _Ledger:
    """Which saved tensors lie in which storage. A handle keeps its storage alive until it is
    cloned, so an address in the ledger is never that of another storage."""

    def __init__(self) -> None:
        self._by_storage: dict[int, WeakSet[_Saved]] = defaultdict(WeakSet)
        self._all: WeakSet[_Saved] = WeakSet()

    def save(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        self._all.add(saved)
        address = _storage(tensor)
        if address:
            self._by_storage[address].add(saved)
        return saved

    def before_write(self, tensor: Tensor) -> None:
        clones: dict[tuple[Any, ...], Tensor] = {}
        for saved in list(self._by_storage.pop(_storage(tensor), ())):
            old = saved.tensor
            assert old is not None
            key = (old.data_ptr(), old.shape, old.stride(), old.dtype)
            if key not in clones:
                clones[key] = old.clone()
            saved.tensor = clones[key]

    def close(self) -> None:
        """Let go of every tensor, also where a graph outlives its use (after an error, say)."""
        for saved in list(self._all):
            saved.tensor = None


class _BeforeWrites(TorchDispatchMode):
    """Tells the ledger of every tensor that an operation is about to write to."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                for tensor in given if isinstance(given, (list, tuple)) else [given]:
                    if isinstance(tensor, Tensor):
                        self._ledger.before_write(tensor)
        return func(*args, **kwargs)


@contextmanager
def saved_tensors_kept() -> Iterator[None]:
    """Inside, forward and backward see saved tensors as they were when they were saved."""
    ledger = _Ledger()
    kept = torch.autograd.graph.saved_tensors_hooks(ledger.save, attrgetter("tensor"))
    try:
        with kept, _BeforeWrites(ledger):
            yield
    finally:
        ledger.close()


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's storage; 0 where it has none of its own (wrappers, empty tensors)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
