"""Every model family: its own classes, sampling, latents and conditioning, at a small size.

The gradient is the slope of the forward pass, and a run starts from KSampler's picture.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .runs import gradient_errors, inside, request, wavy_reward
from .test_parity import assert_equal_to_stock
from .tiny_transformers import TRANSFORMERS
from .tiny_unets import UNETS

FAMILIES = {**UNETS, **TRANSFORMERS}
LIMIT = 1e-5


ZERO_SNR = "SDXL v-prediction, zero SNR"


def asked(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    return request(dtype, **{"steps": 3, "scheduler": "simple", **FAMILIES[name](dtype), **changes})


def right_gradient(asked: Any) -> None:
    errors = gradient_errors(asked, directions=1, step=1e-4)
    assert max(errors) < LIMIT, errors


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_right_gradient(name: str) -> None:
    right_gradient(asked(name, torch.float64, terms=(wavy_reward(),)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_starts_from_ksamplers_picture(name: str) -> None:
    assert_equal_to_stock(asked(name, torch.float32))


def test_a_video_model_with_several_frames_is_refused() -> None:
    from comfyui_dno.nodes.comfy_bridge.refusals import Unsupported

    clip = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    with pytest.raises(Unsupported, match="one frame"):
        gradient_errors(asked("Qwen-Image", torch.float64, latent=clip))


def test_noise_that_the_stock_sampler_leaves_out_is_not_optimized() -> None:
    """From zero SNR in two steps: what is left of sigma before the noise rounds to 0."""
    for steps, noises in ((2, 1), (3, 3)):
        made = asked(ZERO_SNR, torch.float32, steps=steps, scheduler="normal")
        assert inside(made, lambda problem, z, _: len(z)) == noises
        assert_equal_to_stock(made)


@pytest.mark.parametrize("steps", [2, 3])
def test_few_steps_from_zero_snr_have_the_right_gradient(steps: int) -> None:
    changes = {"steps": steps, "scheduler": "normal"}
    right_gradient(asked(ZERO_SNR, torch.float64, terms=(wavy_reward(),), **changes))
