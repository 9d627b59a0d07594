"""A download on the node: its progress bar and a line that says how far it is."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils

from .progress import send_text

GIGABYTE, MEGABYTE = 1e9, 1e6


class TransferProgress:
    """Reports bytes on a node, and raises where the user cancelled."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._bar: Any = None
        self._line = ""

    def report(self, done: int, total: int) -> None:
        """done of total bytes are here; total is 0 where it is not known."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(max(total, 1), node_id=self._node_id)
        self._bar.update_absolute(min(done, max(total, 1)), max(total, 1))
        line = transfer_line(done, total)
        if line != self._line:
            self._line = line
            send_text(line, self._node_id)


def transfer_line(done: int, total: int) -> str:
    """For example "downloading: 1.25 of 3.94 GB"."""
    unit, name = (GIGABYTE, "GB") if max(done, total) >= GIGABYTE else (MEGABYTE, "MB")
    so_far = f"{done / unit:.2f}"
    return (
        f"downloading: {so_far} of {total / unit:.2f} {name}"
        if total
        else (f"downloading: {so_far} {name}")
    )
