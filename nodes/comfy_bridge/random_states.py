"""Patches that roll dice (ToMe, HyperTile): the same dice in every pass, and in the sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, Tensor | None]


class RandomStates:
    """The global random generators as they are at every step of the first pass.

    Such patches draw from the global generators. Other draws in a later pass would make it
    another function of the noise, and a recomputation would not be of what was computed.
    """

    def __init__(self, device: torch.device) -> None:
        module = None if device.type == "cpu" else getattr(torch, device.type, None)
        self._module: Any = module if hasattr(module, "get_rng_state") else None
        self._start = self._state()
        self._marks: dict[int, State] = {}

    def begin(self) -> None:
        """Before a forward pass."""
        self._marks.clear()
        self._restore(self._start)

    def pass_by(self, step: int) -> None:
        """Before a step of a forward pass."""
        self._marks[step] = self._state()

    def go_to(self, step: int) -> None:
        """Before a step is computed once more."""
        self._restore(self._marks[step])

    def rolled(self) -> bool:
        """Whether dice were rolled since the pass began: more images would roll more of them."""
        before, now = self._start, self._state()
        pairs = [(a, b) for a, b in zip(before, now, strict=True) if a is not None]
        return any(b is None or not torch.equal(a, b) for a, b in pairs)

    def _state(self) -> State:
        return torch.get_rng_state(), self._module and self._module.get_rng_state()

    def _restore(self, state: State) -> None:
        torch.set_rng_state(state[0])
        if self._module is not None:
            self._module.set_rng_state(state[1])
