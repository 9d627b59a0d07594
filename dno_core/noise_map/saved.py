"""Tensors saved for backward, kept as they were although the model modifies them in place.

`torch.autograd.graph.allow_mutation_on_saved_tensors` has the same purpose, but knows a saved
tensor by its Python id, address and version. All three can come again once a cloned original is
freed; then a new tensor silently gets an old one's value (seen with ControlNets, whose outputs
are scaled in place). Here every saved tensor has a handle of its own, and a write clones all
handles that share its storage, overlapping views included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_saving: ContextVar[Ledger | None] = ContextVar("dno_saving", default=None)
_care: ContextVar[Care | None] = ContextVar("dno_care", default=None)


class Overwritten(RuntimeError):
    """A tensor saved for backward was written to where no ledger watched."""


class Saved:
    """One tensor saved for backward; it lives as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self._version = _version(tensor)

    def replace(self, clone: Tensor) -> None:
        self.tensor, self._version = clone, _version(clone)

    def read(self) -> Tensor:
        """The tensor as it was. Raises Overwritten where that cannot be had."""
        if self.tensor is None:
            raise Overwritten("A tensor saved for backward was let go before it was used.")
        if _version(self.tensor) != self._version:
            raise Overwritten(
                "A tensor saved for backward was written to out of sight, and its gradient would "
                "be wrong. Remove patches from the model one by one."
            )
        return self.tensor


class Care:
    """Whether the graphs of one function, built again and again, have to be watched.

    They are, for one whole pull. If nothing was written to what they had saved, that function
    writes to nothing it saves, and from then on autograd's own version counters do: they cost
    nothing, and raise where a write comes all the same (`Overwritten`, then `distrust`).
    """

    def __init__(self) -> None:
        self._written = False
        self.trusts = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Ledgers made inside heed it."""
        token = _care.set(self)
        try:
            yield
        finally:
            _care.reset(token)

    def passed(self) -> None:
        """A whole pull has gone by."""
        self.trusts = not self._written

    def distrust(self) -> None:
        """Something was written to what a graph had saved."""
        self._written, self.trusts = True, False


class Ledger:
    """Which saved tensors lie in which storage. A handle keeps its storage alive until it is
    cloned, so an address in the ledger is never that of another storage.

    Graphs are built inside `saving`; all that may write to what they saved runs inside `watching`.
    Both do nothing where the `Care` that is taken as the ledger is made trusts the function.
    """

    def __init__(self) -> None:
        self._care = _care.get()
        self.trusts = self._care is not None and self._care.trusts
        self._by_storage: dict[int, WeakSet[Saved]] = defaultdict(WeakSet)
        self._all: WeakSet[Saved] = WeakSet()
        self._shelf: WeakSet[Saved] = WeakSet()
        self._watches = False

    def save(self, tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        self._all.add(saved)
        self._shelf.add(saved)
        address = _storage(tensor)
        if address:
            self._by_storage[address].add(saved)
        return saved

    def before_write(self, tensor: Tensor) -> None:
        clones: dict[tuple[Any, ...], Tensor] = {}
        for saved in list(self._by_storage.pop(_storage(tensor), ())):
            old = saved.tensor
            if old is None:  # let go of already
                continue
            if self._care is not None:
                self._care.distrust()
            key = (old.data_ptr(), old.shape, old.stride(), old.dtype)
            if key not in clones:
                clones[key] = old.clone()
            saved.replace(clones[key])

    def bytes_saved(self, outside: Collection[int] = ()) -> int:
        """Bytes of all storages that are held for graphs, each once, but for those at the
        addresses `outside` (weights, say)."""
        sizes: dict[int, int] = {}
        for saved in list(self._all):
            if saved.tensor is not None and (address := _storage(saved.tensor)):
                sizes[address] = saved.tensor.untyped_storage().nbytes()
        return sum(size for address, size in sizes.items() if address not in outside)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, tensors are cloned before an operation writes to them."""
        if self._watches or self.trusts:
            yield
            return
        self._watches = True
        try:
            with _BeforeWrites(self):
                yield
        finally:
            self._watches = False

    @contextmanager
    def saving(self) -> Iterator[Collection[Saved]]:
        """Inside, graphs save their tensors here; gives those of this place, for `let_go`.

        An operation that saves its own result forms a cycle with it, which nobody collects.
        """
        shelf: WeakSet[Saved] = WeakSet()
        if self.trusts:
            yield shelf
            return
        token, before = _saving.set(self), self._shelf
        self._shelf = shelf
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.save, Saved.read):
                yield shelf
        finally:
            self._shelf = before
            _saving.reset(token)

    def close(self) -> None:
        """Let go of every tensor, also where a graph outlives its use (after an error, say)."""
        let_go(self._all)


def let_go(shelf: Collection[Saved]) -> None:
    """Free what graphs have saved."""
    for saved in list(shelf):
        saved.tensor = None


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes to."""
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


class _BeforeWrites(TorchDispatchMode):
    """Tells the ledger of every tensor that an operation is about to write to."""

    def __init__(self, ledger: Ledger) -> None:
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
        for index, name in _written(func):
            given = args[index] if index < len(args) else kwargs.get(name)
            for tensor in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(tensor, Tensor):
                    self._ledger.before_write(tensor)
        # a subclass without a dispatch of its own (GGUF weights) would come back on the result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


@contextmanager
def saved_tensors_kept() -> Iterator[Ledger]:
    """Inside, forward and backward see saved tensors as they were when they were saved."""
    ledger = Ledger()
    try:
        with ledger.saving(), ledger.watching():
            yield ledger
    finally:
        ledger.close()


def saving_ledger() -> Ledger | None:
    """The ledger to which tensors are saved at the moment; None outside of `Ledger.saving`."""
    return _saving.get()


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's storage; 0 where it has none of its own (wrappers, empty tensors)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version
