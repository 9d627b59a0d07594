"""A ledger of a run: its denoiser calls, decodes and scores in order, and its waits for numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CALL, DECODE, SCORE, PULL, FINAL = "C", "D", "S", "P", "V"
"""A denoiser call, a decode, a reward's score, a decode's pull, VAE Decode on what is returned."""

WAITS = {
    "_local_scalar_dense": "a scalar",  # float(), bool(), int(), item()
    "is_nonzero": "a scalar",
    "equal": "equal",
    "masked_select": "masked_select",
    "nonzero": "nonzero",
    "unique_dim": "unique",
    "_unique2": "unique",
}
"""Operations in which the host waits for an accelerator."""

COPIES = {Tensor.cpu: "cpu", Tensor.numpy: "numpy", Tensor.tolist: "tolist"}
"""Copies to the host; on a CPU the first two are no operation that torch would dispatch."""


class Ledger:
    """`events` in order: the letters above, and the names of what the host waited for.

    `batches`: how many latents each denoiser call was given.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.batches: list[int] = []

    @property
    def story(self) -> str:
        """The letters in order, without the waits."""
        return "".join(event for event in self.events if len(event) == 1)

    @property
    def waits(self) -> Counter[str]:
        return Counter(event for event in self.events if len(event) > 1)

    @property
    def waits_between_calls(self) -> Counter[str]:
        """After the first denoiser call began and before the last one did."""
        calls = [index for index, event in enumerate(self.events) if event == CALL]
        return Counter(event for event in self.events[calls[0] : calls[-1]] if len(event) > 1)


class _Waits(TorchDispatchMode):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self._ledger.events.append(WAITS[name])
        elif name == "index" and any(_is_mask(each) for each in args[1]):
            self._ledger.events.append("a mask as index")
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in COPIES:
            self._ledger.events.append(COPIES[function])
        return function(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def kept(request: Any) -> Iterator[Ledger]:
    """A ledger of what is done meanwhile with the request's model, VAE and rewards."""
    import comfy.sd

    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder

    ledger = Ledger()

    def called(network: Any, args: Any) -> None:
        ledger.events.append(CALL)
        ledger.batches.append(args[0].shape[0])

    def noting(event: str, function: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            ledger.events.append(event)
            return function(*args, **kwargs)

        return noted

    noted = [(BlockDecoder, "decode", DECODE), (BlockDecoder, "pull", PULL)]
    noted += [(type(term.reward), "score", SCORE) for term in request.terms]
    noted += [(comfy.sd.VAE, "decode", FINAL)]
    hook = request.drawing.model.model.diffusion_model.register_forward_pre_hook(called)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, event in noted:
                patch.setattr(owner, name, noting(event, getattr(owner, name)))
            with _Copies(ledger), _Waits(ledger):
                yield ledger
    finally:
        hook.remove()
