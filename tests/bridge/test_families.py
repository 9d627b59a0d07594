"""Every model family: its own classes, sampling, latents and conditioning, at a small size.

The gradient is the slope of the forward pass, and a run starts from KSampler's picture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from comfyui_dno.dno_core import ZoSgd

from .runs import gradient_errors, inside, request, wavy_reward
from .test_parity import assert_equal_to_stock
from .tiny_transformers import TRANSFORMERS, WITHOUT_BACKWARD, WITHOUT_DOUBLE
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


@pytest.mark.parametrize("name", WITHOUT_DOUBLE)
def test_a_family_without_double_precision_passes_the_check_of_a_run(name: str) -> None:
    from comfyui_dno.nodes import optimization

    made = request(
        torch.float32,
        **{"iterations": 1, "scheduler": "simple", **WITHOUT_DOUBLE[name](torch.float32)},
    )
    assert_equal_to_stock(made)
    assert optimization.run(made).trajectory.meta["gradient_checked"]


@pytest.mark.parametrize("name", WITHOUT_BACKWARD)
def test_a_family_whose_kernels_have_no_backward_is_refused_and_climbs_without_a_gradient(
    name: str,
) -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.refusals import Unsupported

    made = request(
        torch.float32,
        **{"iterations": 1, "scheduler": "simple", **WITHOUT_BACKWARD[name](torch.float32)},
    )
    assert_equal_to_stock(made)
    with pytest.raises(Unsupported, match="comfy_kitchen.*Choose zo_sgd"):
        optimization.run(made)
    blind = dataclasses.replace(made, estimator=ZoSgd(probes=1))
    assert optimization.run(blind).trajectory.last == 1


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
