"""Graphs are watched until a whole pull has shown that nothing writes to what they save."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from comfyui_dno.dno_core import vjp
from comfyui_dno.dno_core.noise_map.saved import Care, Overwritten

X = torch.linspace(-1, 1, 5, dtype=torch.float64)
V = torch.linspace(2, 3, 5, dtype=torch.float64)


def out_of_place(x: Tensor) -> Tensor:
    return x.exp() * x.sin()


def in_place(x: Tensor) -> Tensor:
    """Its result is that of `out_of_place`; the exponential's saved result is overwritten."""
    grown = x.exp()
    shown = grown * x.sin()
    grown.mul_(0)
    return shown


def pull(care: Care, function: Callable[[Tensor], Tensor]) -> Tensor:
    with care.taken():
        (found,) = vjp(function, [X], V)
    return found


EXPECTED = V * X.exp() * (X.sin() + X.cos())


def test_a_function_that_writes_to_nothing_is_watched_once() -> None:
    modes: list[object] = []

    def noting(x: Tensor) -> Tensor:
        modes.append(_get_current_dispatch_mode())
        return out_of_place(x)

    care = Care()
    first = pull(care, noting)
    care.passed()
    second = pull(care, noting)
    assert modes[0] is not None and modes[1] is None
    assert torch.equal(first, second)
    torch.testing.assert_close(first, EXPECTED)


def test_a_function_that_writes_to_what_it_saved_is_watched_always() -> None:
    care = Care()
    for _ in range(3):
        torch.testing.assert_close(pull(care, in_place), EXPECTED)
        care.passed()
        assert not care.trusts


def test_a_function_that_begins_to_write_is_found_out_and_watched_from_then_on() -> None:
    care = Care()
    pull(care, out_of_place)
    care.passed()
    assert care.trusts
    with pytest.raises(Overwritten):
        pull(care, in_place)
    care.distrust()
    torch.testing.assert_close(pull(care, in_place), EXPECTED)
    care.passed()
    assert not care.trusts


def test_trust_in_one_function_is_none_in_another() -> None:
    trusting = Care()
    pull(trusting, out_of_place)
    trusting.passed()
    torch.testing.assert_close(pull(Care(), in_place), EXPECTED)
    (found,) = vjp(in_place, [X], V)
    torch.testing.assert_close(found, EXPECTED)
