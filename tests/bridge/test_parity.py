"""DNO Sampler starts from the picture that KSampler draws, to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from . import tiny
from .runs import inside, iteration_zero, request, stock

SCHEDULERS = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]


def assert_equal_to_stock(asked: Any) -> None:
    """With 0 iterations, and at iteration 0 inside a run."""
    import nodes

    from comfyui_dno.nodes import optimization

    expected = stock(asked)["samples"]
    assert expected.std() > 0
    zero = iteration_zero(asked)
    assert torch.equal(zero, expected)
    result = optimization.run(dataclasses.replace(asked, iterations=0))
    assert torch.equal(result.latent["samples"], expected)
    assert result.latent["samples"].dtype == expected.dtype
    assert torch.equal(result.image, nodes.VAEDecode().decode(asked.vae, {"samples": expected})[0])


def latent(batch: int, mask: bool, empty: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    samples = torch.randn(batch, *tiny.LATENT, generator=generator)
    made: dict[str, Any] = {"samples": samples * (0 if empty else 3)}
    if mask:
        made["noise_mask"] = torch.linspace(0, 1, 32).expand(1, 32, 32).clone()
    return made


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("denoise", [1.0, 0.6])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_equals_ksampler(batch: int, mask: bool, denoise: float, eta: float) -> None:
    made = latent(batch, mask, empty=denoise == 1 and not mask)
    assert_equal_to_stock(request(latent=made, denoise=denoise, eta=eta))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_equals_ksampler_with_every_scheduler(scheduler: str) -> None:
    assert_equal_to_stock(request(scheduler=scheduler, steps=6))


def test_every_scheduler_of_comfyui_was_tried() -> None:
    import comfy.samplers

    assert set(SCHEDULERS) == set(comfy.samplers.KSampler.SCHEDULERS)


def test_a_scheduler_may_give_other_than_the_asked_number_of_steps() -> None:

    lengths = {len(request(scheduler=s, steps=6).drawing.sigmas(1.0)) for s in SCHEDULERS}
    assert len(lengths) > 1, "no scheduler here tests that the schedule decides, not the widget"


def test_it_equals_ksampler_for_one_image_of_a_batch() -> None:
    made = latent(2, mask=False, empty=True)
    assert_equal_to_stock(request(latent={**made, "batch_index": [4, 1]}))


def test_it_equals_ksampler_with_v_prediction() -> None:
    assert_equal_to_stock(request(model=tiny.sd_model(torch.float32, v_prediction=True)))


def test_it_equals_ksampler_at_cfg_1() -> None:
    assert_equal_to_stock(request(cfg=1.0))


def test_it_equals_ksampler_with_a_lora_and_a_controlnet() -> None:
    control = tiny.control_net(torch.float32, strength=0.7)
    positive = tiny.conditioning(1, torch.float32, control=control, control_apply_to_uncond=True)
    model = tiny.lora_model(tiny.sd_model(torch.float32))
    assert_equal_to_stock(request(model=model, positive=positive))


def test_every_pass_through_keyframed_hooks_gives_the_same_picture() -> None:
    """The weights that the last keyframe left must not be those of the next first step."""
    model = tiny.sd_model(torch.float32)
    hooks = tiny.hook_lora(model, keyframes=True)
    asked = request(
        model=model,
        positive=tiny.conditioning(1, torch.float32, hooks=hooks),
        negative=tiny.conditioning(2, torch.float32, hooks=hooks),
    )

    def thrice(problem: Any, z: torch.Tensor, to_latent: Any) -> list[torch.Tensor]:
        weights = (1.0,)
        first = problem.evaluate(z, weights, differentiate=True)
        second = problem.evaluate(z, weights)
        problem.gradient(z, first, first.image_gradient)
        third = problem.evaluate(z, weights)
        return [to_latent(each.path.final) for each in (first, second, third)]

    expected = stock(asked)["samples"]
    for latent in inside(asked, thrice):
        assert torch.equal(latent, expected)
    assert torch.equal(stock(asked)["samples"], expected)


def test_every_pass_through_a_patch_that_rolls_dice_gives_the_same_picture() -> None:
    from comfy_extras.nodes_tomesd import TomePatchModel

    model = TomePatchModel.execute(tiny.sd_model(torch.float32), 0.5)[0]
    asked = request(model=model)
    expected = stock(asked)["samples"]
    assert not torch.equal(expected, stock(request(model=model.clone(), seed=6))["samples"])

    def twice(problem: Any, z: torch.Tensor, to_latent: Any) -> list[torch.Tensor]:
        passes = [problem.noise_map.forward(z) for _ in range(2)]
        return [to_latent(path.final) for path in passes]

    for latent in inside(asked, twice):
        assert torch.equal(latent, expected)
    assert_equal_to_stock(asked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_equals_ksampler_in_half_precision(dtype: torch.dtype) -> None:
    assert_equal_to_stock(request(model=tiny.sd_model(dtype)))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_flux_equals_ksampler(eta: float, mask: bool) -> None:
    made: dict[str, Any] = {"samples": torch.zeros(2, 16, 8, 8)}
    if mask:
        made = {"samples": torch.ones(2, 16, 8, 8), "noise_mask": torch.ones(1, 8, 8) / 2}
    assert_equal_to_stock(
        request(
            model=tiny.flux_model(torch.float32),
            vae=tiny.flux_vae(torch.float32),
            positive=tiny.flux_conditioning(1, torch.float32),
            negative=tiny.flux_conditioning(2, torch.float32),
            latent=made,
            cfg=1.0,
            eta=eta,
        )
    )


@pytest.mark.parametrize("flow", [False, True])
def test_between_ode_and_sde_it_equals_the_stock_sampler_of_that_eta(flow: bool) -> None:
    from comfyui_dno.nodes import optimization

    changes: dict[str, Any] = {"eta": 0.5}
    if flow:
        changes |= {
            "model": tiny.flux_model(torch.float32),
            "vae": tiny.flux_vae(torch.float32),
            "positive": tiny.flux_conditioning(1, torch.float32),
            "negative": tiny.flux_conditioning(2, torch.float32),
            "latent": {"samples": torch.zeros(1, 16, 8, 8)},
        }
    asked = request(**changes, iterations=0)
    expected = optimization.run(asked).latent["samples"]
    assert torch.equal(iteration_zero(asked), expected)
    assert not torch.equal(stock(asked)["samples"], expected)


@pytest.mark.parametrize("seed", [2**32 + 5, 2**63 + 7, 2**64 - 2])
def test_every_seed_that_the_widget_allows_can_be_run(seed: int) -> None:
    from comfyui_dno.nodes import optimization

    asked = request(seed=seed, iterations=1, check_gradient=False, regularizer=None)
    trajectory = optimization.run(asked).trajectory
    assert torch.equal(trajectory.latents[0], stock(asked)["samples"])


def test_the_largest_seed_runs_where_ksampler_runs() -> None:
    """Its successor, which ComfyUI seeds the later noises with on a CPU, is no seed any more."""
    from comfyui_dno.nodes import optimization

    asked = request(seed=2**64 - 1, iterations=1, check_gradient=False)
    try:
        expected = stock(asked)["samples"]
    except (RuntimeError, ValueError, OverflowError) as error:
        with pytest.raises(type(error)):
            optimization.run(asked)
    else:
        assert torch.equal(optimization.run(asked).trajectory.latents[0], expected)


@pytest.mark.parametrize("iterations", [0, 1])
def test_the_latent_keeps_what_ksampler_keeps(iterations: int) -> None:
    from comfyui_dno.nodes import optimization

    made = {**latent(1, mask=True, empty=False), "batch_index": [0], "downscale_ratio_spacial": 8}
    asked = request(latent=made, iterations=iterations, check_gradient=False)
    expected = stock(asked)
    result = optimization.run(asked).latent
    assert result.keys() == expected.keys()
    assert result["noise_mask"] is expected["noise_mask"]
    assert result["samples"].dtype == expected["samples"].dtype
