"""The run's gradient is the slope of its own forward pass, whatever hangs on the model.

Against central differences in float64, through guider, CFG, VAE decode and reward.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from comfyui_dno.dno_core import Term
from comfyui_dno.rewards.base import PixelReward

from . import tiny
from .runs import KeepDouble, gradient_errors, inside, request, wavy_reward

LIMIT = 1e-5
DOUBLE = torch.float64


def check(**changes: Any) -> None:
    errors = gradient_errors(request(DOUBLE, terms=(wavy_reward(),), **changes))
    assert max(errors) < LIMIT, errors


def a_picture(batch: int = 1) -> torch.Tensor:
    """A latent with something in it."""
    generator = torch.Generator().manual_seed(8)
    return 3 * torch.randn(batch, *tiny.LATENT, generator=generator)


def a_mask() -> torch.Tensor:
    """Soft, between 0 and 1, at latent size."""
    return torch.linspace(0, 1, 8).expand(1, 8, 8).clone()


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_plain_sampling_has_the_right_gradient(eta: float) -> None:
    check(eta=eta)


def test_cfg_1_has_the_right_gradient() -> None:
    check(cfg=1.0)


def test_every_image_of_a_batch_has_the_right_gradient() -> None:
    check(batch=2)


@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_a_noise_mask_has_the_right_gradient(denoise: float) -> None:
    check(latent={"samples": a_picture(), "noise_mask": a_mask()}, denoise=denoise)


def test_v_prediction_has_the_right_gradient() -> None:
    check(model=tiny.sd_model(DOUBLE, v_prediction=True))


def test_a_patched_model_sampling_has_the_right_gradient() -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    check(model=ModelSamplingDiscrete().patch(tiny.sd_model(DOUBLE), "v_prediction", False)[0])


def test_a_lora_has_the_right_gradient() -> None:
    check(model=tiny.lora_model(tiny.sd_model(DOUBLE)))


def test_a_controlnet_has_the_right_gradient() -> None:
    control = tiny.control_net(strength=0.7)
    check(
        positive=tiny.conditioning(1, control=control, control_apply_to_uncond=False),
        negative=tiny.conditioning(2, control=control),
    )


def test_chained_controlnets_with_a_timestep_range_have_the_right_gradient() -> None:
    second = tiny.control_net(seed=4, strength=1.3, timestep_percent_range=(0.0, 0.5))
    second.set_previous_controlnet(tiny.control_net(strength=0.7))
    check(positive=tiny.conditioning(1, control=second, control_apply_to_uncond=True))


def test_a_controlnet_whose_hint_goes_through_the_vae_has_the_right_gradient() -> None:
    """It loads models in its first call, in the middle of a run."""
    vae = tiny.vae(DOUBLE)
    control = tiny.control_net(strength=0.7, vae=vae)
    check(positive=tiny.conditioning(1, control=control, control_apply_to_uncond=True), vae=vae)


def test_a_conditioning_with_a_timestep_range_has_the_right_gradient() -> None:
    early = tiny.conditioning(1, start_percent=0.0, end_percent=0.4)
    late = tiny.conditioning(3, start_percent=0.4, end_percent=1.0)
    check(positive=early + late)


def test_combined_conditionings_of_unequal_length_have_the_right_gradient() -> None:
    check(positive=tiny.conditioning(1) + tiny.conditioning(3, tokens=7))


def test_an_area_and_a_mask_conditioning_have_the_right_gradient() -> None:
    area = tiny.conditioning(3, area=(4, 4, 2, 0), strength=0.8, set_area_to_bounds=False)
    masked = tiny.conditioning(4, mask=a_mask(), mask_strength=0.9, set_area_to_bounds=False)
    check(positive=tiny.conditioning(1) + area + masked)


def test_freeu_v2_has_the_right_gradient() -> None:
    from comfy_extras.nodes_freelunch import FreeU_V2

    check(model=FreeU_V2.execute(tiny.sd_model(DOUBLE), 1.3, 1.4, 0.9, 0.2)[0])


def test_perturbed_attention_guidance_has_the_right_gradient() -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    check(model=PerturbedAttentionGuidance.execute(tiny.sd_model(DOUBLE), 3.0)[0])


def test_differential_diffusion_has_the_right_gradient() -> None:
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    check(
        model=DifferentialDiffusion.execute(tiny.sd_model(DOUBLE), 0.8)[0],
        latent={"samples": a_picture(), "noise_mask": a_mask()},
    )


@pytest.mark.parametrize("keyframes", [False, True])
def test_the_same_hook_lora_on_both_prompts_has_the_right_gradient(keyframes: bool) -> None:
    model = tiny.sd_model(DOUBLE)
    hooks = tiny.hook_lora(model, keyframes)
    check(
        model=model,
        positive=tiny.conditioning(1, hooks=hooks),
        negative=tiny.conditioning(2, hooks=hooks),
    )


def test_a_patch_that_keeps_inference_tensors_has_the_right_gradient() -> None:
    """As IPAdapter and regional prompts do: made when their node ran, out of our reach."""
    scale = torch.rand(1, 1, 1, dtype=DOUBLE) + 0.5
    shift = torch.randn(1, 1, 1, dtype=DOUBLE)
    assert scale.is_inference()
    model = tiny.sd_model(DOUBLE)
    model.set_model_attn2_patch(
        lambda q, k, v, extra_options: (torch.tanh(q) * scale, k * q.mean() * scale, v + shift)
    )
    check(model=model)


def test_a_reward_that_keeps_inference_tensors_has_the_right_gradient() -> None:
    target = torch.rand(1, 3, 16, 16, dtype=DOUBLE)
    assert target.is_inference()

    def score(images: torch.Tensor) -> torch.Tensor:
        return (torch.sin(5 * images * target) * target).flatten(1).mean(1)

    errors = gradient_errors(request(DOUBLE, terms=(Term(PixelReward("a", "b", 1.0, score)),)))
    assert max(errors) < LIMIT, errors


def test_the_batching_of_the_prompts_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI decides by free memory; deciding otherwise in the sweep changes the numbers."""
    from comfy.model_patcher import ModelPatcher

    answers = itertools.cycle([2**40, 0])
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: next(answers))
    sizes = []

    def noting(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        sizes.append(len(given["input"]))
        return apply_model(given["input"], given["timestep"], **given["c"])

    model = tiny.sd_model(torch.float32)
    model.set_model_unet_function_wrapper(noting)

    def work(problem: Any, z: torch.Tensor, to_latent: Any) -> None:
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        problem.gradient(z, evaluation, evaluation.image_gradient)

    inside(request(model=model), work)
    assert len(set(sizes)) == 1
    assert len(sizes) in (6, 12)


def flux(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    return {
        "model": tiny.flux_model(DOUBLE),
        "vae": tiny.flux_vae(DOUBLE),
        "positive": tiny.flux_conditioning(1),
        "negative": tiny.flux_conditioning(2),
        "latent": {"samples": torch.randn(1, 16, 8, 8, generator=generator)},
        **changes,
    }


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_flux_has_the_right_gradient(eta: float) -> None:
    check(**flux(eta=eta, cfg=1.0))


def test_flux_with_cfg_and_a_mask_has_the_right_gradient() -> None:
    latent = {"samples": torch.ones(1, 16, 8, 8), "noise_mask": a_mask()}
    check(**flux(cfg=2.0, denoise=0.7, latent=latent))


def test_a_plain_checkpoint_would_have_been_silently_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why the sweep recomputes by hand: Flux adds to tensors that autograd has saved."""
    from torch.utils.checkpoint import checkpoint

    from comfyui_dno.dno_core.noise_map import sampler

    def checkpointed(function: Any, inputs: Any, v: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_(True) for x in inputs]
        with torch.enable_grad():
            out = checkpoint(in_double(function), *leaves, use_reentrant=False)
            pulled = torch.autograd.grad(out, leaves, v, allow_unused=True)
        return [
            torch.zeros_like(x) if g is None else g for g, x in zip(pulled, inputs, strict=True)
        ]

    def in_double(function: Any) -> Any:
        def wrapped(*args: torch.Tensor) -> torch.Tensor:
            with KeepDouble():  # the recomputation runs outside of the test's own
                return function(*args)

        return wrapped

    monkeypatch.setattr(sampler, "vjp", checkpointed)
    errors = gradient_errors(request(DOUBLE, terms=(wavy_reward(),), **flux(cfg=1.0)))
    assert max(errors) > 0.05
