"""The result file: written after every row, so that a run that is ended keeps what it has."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

MEASURED = (
    "seconds",
    "peak_gb",
    "reserved_gb",
    "matrix_share",
    "matrix_peak_tflops",
    "error_along",
    "error_half",
    "cosine",
    "norm_ratio",
)
"""What a dry run computes as well, and does not claim: there it is null in the file."""


class Sheet:
    """Results by section; `failures` hold what went wrong, `skipped` what there was no time for."""

    def __init__(self, path: Path | None, seconds: float, dry: bool, head: dict[str, Any]) -> None:
        self._path, self._dry = path, dry
        self._began, self._seconds = time.monotonic(), seconds
        self.content: dict[str, Any] = {**head, "failures": [], "skipped": []}

    @property
    def seconds_left(self) -> float:
        return self._seconds - (time.monotonic() - self._began)

    def put(self, section: str, value: Any) -> None:
        self.content[section] = self._claimed(value)
        self.write()

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.content.setdefault(section, []).append(self._claimed(row))
        self.write()

    def fail(self, stage: str, name: str, error: BaseException) -> None:
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:400]
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in frames]
        row = {"stage": stage, "name": name, "error": what, "where": where}
        self.content["failures"].append(row)
        self.write()

    def skip(self, stage: str, name: str, reason: str) -> None:
        self.content["skipped"].append({"stage": stage, "name": name, "reason": reason})
        self.write()

    def write(self) -> None:
        """Whole or not at all: the file is put in place of the old one."""
        self.content["seconds_taken"] = round(time.monotonic() - self._began, 1)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self._path)

    def _claimed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: None if self._dry and key in MEASURED else self._claimed(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._claimed(item) for item in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value
