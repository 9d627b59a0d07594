"""Saved tensors keep their values, however the model writes over them and reuses memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core.noise_map.sampler import vjp


def busy(x: Tensor, scale: float) -> Tensor:
    """Saves, scales in place, frees, and allocates the same sizes over and over."""
    total = x
    for _ in range(40):
        out = torch.sin(total)
        part = out * out
        out *= scale
        total = total + 0.1 * part * out.tanh()
        del out, part
    return total


def busy_out_of_place(x: Tensor, scale: float) -> Tensor:
    total = x
    for _ in range(40):
        out = torch.sin(total)
        total = total + 0.1 * out * out * (out * scale).tanh()
    return total


@pytest.mark.parametrize("size", [3, 64, 1000, 5000])
def test_memory_that_is_used_again_does_not_mix_saved_tensors_up(size: int) -> None:
    x = torch.randn(size, dtype=torch.float64)
    v = torch.randn(size, dtype=torch.float64)
    for _ in range(5):
        ours = vjp(lambda x: busy(x, 0.7), [x], v)[0]
        true = vjp(lambda x: busy_out_of_place(x, 0.7), [x], v)[0]
        torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)


def test_a_write_to_a_slice_of_a_saved_tensor_is_seen() -> None:
    def overlapping(x: Tensor) -> Tensor:
        y = x * 2
        squared = y * y
        y[3:] = 0
        y[:, 1:2].mul_(5)
        return squared.sum() + y.sum() * 0

    x = torch.randn(6, 4, dtype=torch.float64)
    pulled = vjp(overlapping, [x], torch.ones((), dtype=torch.float64))[0]
    torch.testing.assert_close(pulled, 8 * x)


def test_a_write_through_another_view_and_an_out_argument_are_seen() -> None:
    def aliased(x: Tensor) -> Tensor:
        y = x * 3
        view = y.t()
        cubed = y**3
        with torch.no_grad():
            torch.add(view, 1, out=view)
        return cubed.sum()

    x = torch.randn(4, 4, dtype=torch.float64)
    pulled = vjp(aliased, [x], torch.ones((), dtype=torch.float64))[0]
    torch.testing.assert_close(pulled, 81 * x**2)
