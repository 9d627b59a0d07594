"""How the benchmarks write down what they found."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Where numbers come from: processor kind and cores, torch's version; no names of hosts."""
    import torch

    return {
        "device": f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread used",
        "torch": torch.__version__,
    }


def rounded(value: Any) -> Any:
    """Every number within to three digits."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
