"""Hook LoRAs with keyframes: their strength at any step, also when steps are visited backward."""

from __future__ import annotations

from typing import Any

Mark = list[dict[str, Any]]
"""The state of every keyframe group, as it is before one step of a pass."""


class HookFrames:
    """ComfyUI's keyframes only move forward, and patched weights stay until a frame changes.

    So a second pass would begin with the weights that the first one ended with. Here the frames
    are marked before every step of a pass, and put back before that step is visited again.
    """

    def __init__(self, conds: dict[str, list[dict[str, Any]]], patcher: Any) -> None:
        hooks = [
            hook
            for entries in conds.values()
            for entry in entries
            if entry.get("hooks") is not None
            for hook in entry["hooks"].hooks
        ]
        groups = {id(hook.hook_keyframe): hook.hook_keyframe for hook in hooks}
        self._groups = [group for group in groups.values() if group.keyframes]
        self._patcher = patcher
        self._start = self._mark()
        self._marks: dict[int, Mark] = {}

    def begin(self) -> None:
        """Before a forward pass."""
        self._marks.clear()
        self._restore(self._start)

    def pass_by(self, step: int) -> None:
        """Before a step of a forward pass."""
        if self._groups:
            self._marks[step] = self._mark()

    def go_to(self, step: int) -> None:
        """Before a step is computed once more."""
        if self._groups:
            self._restore(self._marks[step])

    def _mark(self) -> Mark:
        return [dict(vars(group)) for group in self._groups]

    def _restore(self, mark: Mark) -> None:
        before = [group.strength for group in self._groups]
        for group, state in zip(self._groups, mark, strict=True):
            vars(group).update(state)
        if before != [group.strength for group in self._groups]:
            self._patcher.clear_cached_hook_weights()
