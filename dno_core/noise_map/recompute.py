"""Blocks of a network that keep only their inputs for the backward pass, and are run again in it.

Not `torch.utils.checkpoint`: that is blind to models which write to the tensors it keeps. Here
inputs are saved in the ledger of the call, and a block runs again where all is as it was: inputs,
options, dice, function modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from .leaks import LeakWatch
from .saved import Ledger, Saved, saving_ledger

Forward = Callable[..., Any]


class Recomputation:
    """Chosen modules of a network, which run as blocks inside `installed`.

    `watched` says of a module and the arguments of a call whether code of unknown origin may run
    in it. Then it is watched for tensors that leave or enter it by another way than its inputs and
    outputs (in a closure, say), through which no gradient would pass; and its dice are noted. A
    module that leaks is found by the first call in which it does, whose result is to be thrown
    away (`found_leaks`); from then on it runs as it is.
    """

    def __init__(
        self, modules: Iterable[nn.Module], watched: Callable[[nn.Module, Any], bool]
    ) -> None:
        self._modules = list(modules)
        self._watched = watched
        self._leaky: set[int] = set()
        self._found = False
        self._inside = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Modules run as blocks where a gradient is wanted; afterwards they are as they were."""
        with ExitStack() as undo:
            for module in self._modules:
                own = vars(module).get("forward")
                undo.callback(_restore, module, own)
                module.forward = self._block(module, module.forward)  # type: ignore[method-assign]
            yield

    def found_leaks(self) -> bool:
        """Whether a block has leaked since this was last asked."""
        found, self._found = self._found, False
        return found

    def _block(self, module: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            ledger = saving_ledger()
            plain = self._inside or ledger is None or not torch.is_grad_enabled()
            if plain or id(module) in self._leaky:
                return forward(*args, **kwargs)
            return self._run(module, forward, (args, kwargs), ledger)

        return run

    def _run(
        self, module: nn.Module, forward: Forward, given: tuple[Any, Any], ledger: Ledger | None
    ) -> Any:
        assert ledger is not None
        tensors = _tensors(given)
        inputs = [each for each in tensors if each.requires_grad]
        if not inputs:
            return forward(*given[0], **given[1])
        watch = LeakWatch(inputs) if self._watched(module, given) else None
        call = _Call(forward, given, tensors, ledger, dice=watch is not None)
        self._inside = True
        try:
            with torch.no_grad(), nullcontext() if watch is None else watch:
                out = forward(*given[0], **given[1])
        finally:
            self._inside = False
        parts = _parts(out)
        if parts is None or (watch is not None and watch.leaked([*tensors, *parts])):
            self._leaky.add(id(module))
            self._found = True
            return out
        call.note_writes(tensors)
        made = iter(_Block.apply(call, [_own(part) for part in parts], *inputs))
        return _filled(out, lambda part: next(made))


class _Call:
    """One run of a block: all that it takes to run it again."""

    def __init__(
        self,
        forward: Forward,
        given: tuple[Any, Any],
        tensors: Sequence[Tensor],
        ledger: Ledger,
        dice: bool,
    ) -> None:
        self._forward = forward
        self._saved: dict[int, Saved] = {id(each): ledger.save(each) for each in tensors}
        self._wanted = [id(each) for each in tensors if each.requires_grad]
        self._given = _filled(given, lambda tensor: _Slot(id(tensor)))
        self._versions = [_version(each) for each in tensors]
        self._written: set[int] = set()
        self._modes = _get_current_function_mode_stack()
        self._dice = _Dice(tensors[0].device) if dice else None

    def note_writes(self, tensors: Sequence[Tensor]) -> None:
        """After the run: which inputs it wrote to."""
        for tensor, version in zip(tensors, self._versions, strict=True):
            if _version(tensor) != version:
                self._written.add(id(tensor))

    def pull(self, slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
        """J^T v for the inputs that want it, by one more run of the block."""
        leaves: dict[int, Tensor] = {}
        given: dict[int, Tensor] = {}
        for name, saved in self._saved.items():
            tensor = saved.read()
            if name in self._wanted:
                tensor = leaves[name] = tensor.detach().requires_grad_(True)
            given[name] = tensor
        args, kwargs = self._given
        ledger = Ledger()
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(ledger.watching())
                for mode in self._modes:
                    stack.enter_context(mode)
                if self._dice is not None:
                    stack.enter_context(self._dice.replayed())
                with ledger.saving():
                    given |= {name: given[name].clone() for name in self._written}
                    args, kwargs = _emptied(self._given, given)
                    parts = _parts(self._forward(*args, **kwargs)) or []
                pairs = [
                    (part, slope)
                    for part, slope in zip(parts, slopes, strict=True)
                    if slope is not None and part.requires_grad
                ]
                if not pairs:
                    return [None] * len(leaves)
                outs, vs = zip(*pairs, strict=True)
                return list(torch.autograd.grad(outs, list(leaves.values()), vs, allow_unused=True))
        finally:
            ledger.close()


class _Block(torch.autograd.Function):
    """The outputs of a block, joined to its inputs by a run to come."""

    @staticmethod
    def forward(ctx: Any, call: _Call, parts: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[part for part in parts if not part.is_floating_point()])
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> Any:  # type: ignore[override]
        call, ctx.call = ctx.call, None
        return (None, None, *call.pull(slopes))


class _Slot:
    """Stands for a tensor among the arguments."""

    def __init__(self, name: int) -> None:
        self.name = name


class _Dice:
    """The global random generators as they are now."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [] if device.type in ("cpu", "meta", "mps") else [device]
        self._type = device.type if self._devices else "cuda"
        self._cpu = torch.get_rng_state()
        module: Any = getattr(torch, self._type, None)
        self._states = [module.get_rng_state(each) for each in self._devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, they are as they were; afterwards as they are."""
        with torch.random.fork_rng(self._devices, device_type=self._type):
            torch.set_rng_state(self._cpu)
            module: Any = getattr(torch, self._type, None)
            for device, state in zip(self._devices, self._states, strict=True):
                module.set_rng_state(state, device)
            yield


def _restore(module: nn.Module, own: Forward | None) -> None:
    if own is None:
        vars(module).pop("forward", None)
    else:
        module.forward = own  # type: ignore[method-assign]


def _tensors(given: Any) -> list[Tensor]:
    """All tensors in arguments, each once, whatever dicts, lists and tuples they lie in."""
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found[id(tensor)] = tensor
        return tensor

    _filled(given, note)
    return list(found.values())


def _filled(value: Any, put: Callable[[Tensor], Any]) -> Any:
    """A copy of nested arguments with put(tensor) for every tensor."""
    if isinstance(value, Tensor):
        return put(value)
    if type(value) is dict:
        return {key: _filled(item, put) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(item, put) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_filled(item, put) for item in value))
    return value


def _emptied(value: Any, tensors: dict[int, Tensor]) -> Any:
    """The copy's copy with the tensors in their places again."""
    if isinstance(value, _Slot):
        return tensors[value.name]
    if type(value) is dict:
        return {key: _emptied(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_emptied(item, tensors) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_emptied(item, tensors) for item in value))
    return value


def _parts(out: Any) -> list[Tensor] | None:
    """The tensors of a block's result; None where it is more than tensors and Nones."""
    members = [out] if isinstance(out, Tensor) else out
    if type(members) not in (list, tuple):
        return None
    parts = [part for part in members if isinstance(part, Tensor)]
    plain = all(part is None or isinstance(part, Tensor) for part in members)
    return parts if plain and parts else None


def _own(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is nobody's view: it may be an input written to in place."""
    fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return fresh.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
