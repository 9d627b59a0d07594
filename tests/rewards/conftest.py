"""What the reward tests share: small random CLIPs, images, central differences."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def clip_factory() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "dno_test_clip_factory", Path(__file__).with_name("clip_factory.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clip_folder(clip_factory: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_factory.write_clip(tmp_path_factory.mktemp("clips") / "small-clip")


@pytest.fixture
def images() -> Tensor:
    """Three smooth images of an odd size, away from 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(3, 3, 5, 6, generator=generator) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, size=(41, 53), mode="bilinear")


@pytest.fixture
def relative_gradient_error() -> Callable[..., float]:
    """|directional derivative by autograd - by central differences| / |the latter|, worst of 5."""

    def measure(function: Callable[[Tensor], Tensor], images: Tensor, step: float = 1e-5) -> float:
        x = images.double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
        generator, worst, h = torch.Generator().manual_seed(3), 0.0, step
        for _ in range(5):
            way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                up, down = function(x + h * way).sum(), function(x - h * way).sum()
            expected = (up - down) / (2 * h)
            found = (gradient * way).sum()
            worst = max(worst, float((found - expected).abs() / expected.abs()))
        return worst

    return measure
