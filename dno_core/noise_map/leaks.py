"""Tensors that leave or enter a piece of code by another way than its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LeakWatch(TorchDispatchMode):
    """Follows what is computed from `inputs`, in a run without gradients.

    It leaked if a tensor so computed lives on outside of the outputs (in a closure or an
    attribute), or if another tensor that wants a gradient was used. Until `leaked` is asked, all
    that was computed is kept alive: a freed tensor's place could be another's.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._inputs = {id(each) for each in inputs}
        self._made: dict[int, Tensor] = {}
        self._captured = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self._captured = self._captured or any(
            each.requires_grad and id(each) not in self._inputs for each in given
        )
        if any(id(each) in self._inputs or id(each) in self._made for each in given):
            for each in tree_leaves(out):
                if isinstance(each, Tensor) and (each.is_floating_point() or each.is_complex()):
                    self._made[id(each)] = each
        return out

    def leaked(self, known: Sequence[Tensor]) -> bool:
        """Whether something leaked; `known` are the inputs and outputs."""
        homes = {each.untyped_storage().data_ptr() for each in known}
        left = [
            ref(each)
            for each in self._made.values()
            if each.untyped_storage().data_ptr() not in homes
        ]
        self._made.clear()
        return self._captured or any(each() is not None for each in left)
