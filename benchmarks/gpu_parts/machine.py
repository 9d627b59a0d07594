"""The GPU that is measured, or a CPU that stands in for it and of which nothing is claimed."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

GB = 2**30
MATRIX, MATRIX_REPEATS = 8192, 20
ITERATIONS, DRY_ITERATIONS = 3, 2
"""The first measures how large a graph is; those after it keep what fits."""


@dataclass(frozen=True)
class Machine:
    """dry: the CPU; it waits for nothing, has no peak and no name."""

    dry: bool

    @cached_property
    def device(self) -> torch.device:
        """ComfyUI's device, with its index: "cuda" is not equal to "cuda:0"."""
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    @property
    def iterations(self) -> int:
        """How many are timed."""
        return DRY_ITERATIONS if self.dry else ITERATIONS

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def begin(self) -> None:
        """Give back what earlier work left behind, and measure peaks from here."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> tuple[int, int]:
        """Most bytes (in tensors, taken from the driver) since `begin`, weights included."""
        if self.dry:
            return 0, 0
        cuda = torch.cuda
        return cuda.max_memory_allocated(self.device), cuda.max_memory_reserved(self.device)

    @contextmanager
    def limited(self, gigabytes: float | None) -> Iterator[None]:
        """In here this process is out of memory beyond that many GB, as on a smaller card."""
        if gigabytes is None or self.dry:
            yield
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        fraction = min(gigabytes * GB / total, 1.0)
        try:
            torch.cuda.set_per_process_memory_fraction(fraction, self.device)
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def matrix_peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of a large matrix product on random data: the fastest of three rounds."""
        size, repeats = (64, 1) if self.dry else (MATRIX, MATRIX_REPEATS)
        a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        torch.mm(a, b)
        taken = []
        for _ in range(3):
            self.wait()
            began = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, b)
            self.wait()
            taken.append(time.perf_counter() - began)
        return 2 * size**3 * repeats / min(taken)

    def description(self) -> dict[str, Any]:
        """The device's name and what it runs with."""
        found = {"torch": torch.__version__, "python": platform.python_version()}
        if self.dry:
            return {"name": "none: a dry run on a CPU", **found}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / GB, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            **found,
        }


def out_of_tf32() -> None:
    """Float32 is to be float32: cuDNN's convolutions round to 10 bits unless they are told."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
