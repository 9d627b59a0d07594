"""The core driving diffusers' own networks, against diffusers' own scheduler and autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from core_models import FakeReward, randn, relative_error, wave
from torch import Tensor

from comfyui_dno.dno_core import Backpropagation, Problem, Term, noise_count
from comfyui_dno.dno_core.noise_map.diffusers_backend import diffusers_map, vae_decoder

diffusers = pytest.importorskip("diffusers")

CFG, STEPS, SIDE, BATCH = 5.0, 5, 8, 2


def scheduler(prediction: str = "epsilon", **options: Any) -> Any:
    """DDIMScheduler with Stable Diffusion's betas, its tables carried to float64."""
    made = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction,
        **options,
    )
    made.alphas_cumprod = torch.cumprod(1 - made.betas.double(), 0)
    made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return made


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    made = diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return made.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.manual_seed(1)
    made = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3,
        shift_factor=0.1,
    )
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(0.4)  # no pixel saturates, so every slope is smooth
    return made.double().eval().requires_grad_(False)


def texts() -> tuple[Tensor, Tensor]:
    return randn(BATCH, 6, 8, seed=1), randn(1, 6, 8, seed=2)


@torch.no_grad()
def diffusers_sample(unet: Any, plan: Any, z: Tensor, cfg: float, eta: float) -> Tensor:
    """The sampling loop of diffusers' own pipelines, noise handed in."""
    prompt, negative = texts()
    plan.set_timesteps(STEPS)
    x = z[0] * plan.init_noise_sigma
    for index, t in enumerate(plan.timesteps):
        inner = plan.scale_model_input(x, t)
        positive = unet(inner, t, encoder_hidden_states=prompt).sample
        unconditional = unet(inner, t, encoder_hidden_states=negative.expand(BATCH, -1, -1)).sample
        out = unconditional + cfg * (positive - unconditional)
        noise = z[index + 1] if index + 1 < len(z) else torch.zeros_like(x)
        given = {"variance_noise": noise} if eta > 0 else {}
        x = plan.step(out, t, x, eta=eta, **given).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_the_sampler_is_diffusers_ddim(unet: Any, prediction: str, eta: float, cfg: float) -> None:
    noise_map = diffusers_map(unet, scheduler(prediction), STEPS, *texts(), cfg=cfg, eta=eta)
    z = randn(noise_count(noise_map.steps), BATCH, 4, SIDE, SIDE)
    assert len(z) == (STEPS if eta else 1)
    ours = noise_map.forward(z).final
    theirs = diffusers_sample(unet, scheduler(prediction), z, cfg, eta)
    assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("options", [{"steps_offset": 1}, {"timestep_spacing": "trailing"}])
def test_the_sampler_follows_the_schedulers_timesteps(unet: Any, options: dict[str, Any]) -> None:
    noise_map = diffusers_map(unet, scheduler(**options), STEPS, *texts(), cfg=CFG, eta=1.0)
    z = randn(STEPS, BATCH, 4, SIDE, SIDE)
    theirs = diffusers_sample(unet, scheduler(**options), z, CFG, 1.0)
    assert relative_error(noise_map.forward(z).final, theirs) < 1e-12


def test_the_decoder_is_vae_decode(vae: Any) -> None:
    x = randn(BATCH, 4, SIDE, SIDE)
    with torch.no_grad():
        pixels = vae.decode(x / 0.3 + 0.1).sample
    decoder = vae_decoder(vae)
    image = decoder.decode(x)
    assert image.dtype == torch.float32 and not image.requires_grad
    assert torch.allclose(image, ((pixels + 1) / 2).float(), atol=1e-6)
    v = randn(BATCH, 3, 2 * SIDE, 2 * SIDE, seed=3)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(vae.decode(leaf / 0.3 + 0.1).sample / 2, leaf, v)
    assert relative_error(decoder.pull(x, v), expected) < 1e-12


class WideDecoder:
    """vae_decoder without the cast of its image to float32: for central differences."""

    def __init__(self, vae: Any) -> None:
        self.inner = vae_decoder(vae)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return self.inner.function(x)

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.pull(x, v)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_gradient_of_every_noise_is_the_slope_through_unet_and_vae(
    unet: Any, vae: Any, eta: float
) -> None:
    """Along random directions in each noise, image by image, central differences in float64."""
    noise_map = diffusers_map(unet, scheduler(), STEPS, *texts(), cfg=CFG, eta=eta)
    problem = Problem(noise_map, WideDecoder(vae), (Term(FakeReward(wave)),))
    z = randn(noise_count(noise_map.steps), BATCH, 4, SIDE, SIDE)
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    assert evaluation.saturated.max() == 0, "a clamped pixel has no slope to compare with"
    gradient = Backpropagation()(problem, z, evaluation, 0)
    h = 1e-3
    for noise in range(len(z)):
        move = torch.zeros_like(z)
        move[noise] = randn(*z.shape[1:], seed=20 + noise)

        def at(delta: float, move: Tensor = move) -> Tensor:
            image = problem.evaluate(z + delta * move, (1.0,)).image
            return wave(image)

        slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        found = (gradient * move).movedim(1, 0).flatten(1).sum(1)
        size = gradient[noise].flatten(1).norm(dim=1) * move[noise].flatten(1).norm(dim=1)
        assert float(((found - slope).abs() / size).max()) < 1e-7, f"noise {noise}"


def test_networks_in_bfloat16_are_driven_by_float32_noise(unet: Any, vae: Any) -> None:
    narrow, decoder = copy.deepcopy(unet).bfloat16(), vae_decoder(copy.deepcopy(vae).bfloat16())
    prompt, negative = texts()
    noise_map = diffusers_map(narrow, scheduler(), STEPS, prompt, negative, cfg=CFG)
    z = randn(STEPS, BATCH, 4, SIDE, SIDE, dtype=torch.float32)
    problem = Problem(noise_map, decoder, (Term(FakeReward(wave)),))
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    gradient = Backpropagation()(problem, z, evaluation, 0)
    assert evaluation.path.final.dtype == gradient.dtype == torch.float32
    wide = diffusers_map(unet, scheduler(), STEPS, prompt, negative, cfg=CFG)
    reference = Problem(wide, vae_decoder(vae), problem.terms)
    expected = reference.evaluate(z.double(), (1.0,), differentiate=True)
    exact = Backpropagation()(reference, z.double(), expected, 0)
    assert relative_error(gradient.double(), exact) < 0.1


def test_an_unknown_prediction_type_is_refused(unet: Any) -> None:
    with pytest.raises(ValueError, match="prediction type 'sample'"):
        diffusers_map(unet, scheduler("sample"), STEPS, *texts())
