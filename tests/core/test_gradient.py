"""The backward sweep against central differences, in float64, for every noise."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from core_models import (
    CHANNELS,
    SIDE,
    SIGMAS,
    MaskedDenoiser,
    conv_denoiser,
    in_place_denoiser,
    numeric_gradient,
    randn,
    relative_error,
    small_noise,
    small_problem,
    start_scaled,
    without_overwriting,
)
from torch import Tensor

from comfyui_dno.dno_core import (
    GradientMode,
    SamplerMap,
    Step,
    ddim_steps,
    flow_steps,
    noise_count,
    sample,
    sweep,
    vjp,
)

FLOW = torch.tensor([1.0, 0.75, 0.5, 0.2, 0.0], dtype=torch.float64)


def same(z0: Tensor) -> Tensor:
    return z0


def weighted(noise_map: SamplerMap, weight: Tensor, z: Tensor) -> Tensor:
    """A nonlinear function of x_T with a gradient everywhere: [B]."""
    final = noise_map.forward(z).final
    return (torch.sin(final) * weight).flatten(1).sum(1)


def swept(noise_map: SamplerMap, weight: Tensor, z: Tensor) -> Tensor:
    path = noise_map.forward(z)
    return noise_map.pull(z, path, torch.cos(path.final) * weight)


def errors(noise_map: SamplerMap, z: Tensor, seed: int = 9) -> list[float]:
    """The relative error of the gradient of every noise, on its own."""
    weight = randn(*z.shape[1:], seed=seed)
    expected = numeric_gradient(partial(weighted, noise_map, weight), z)
    found = swept(noise_map, weight, z)
    assert found.dtype == torch.float64
    return [relative_error(f, e) for f, e in zip(found, expected, strict=True)]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["ddim", "ddim, last sigma above 0", "flow"])
def test_the_gradient_of_every_noise_is_the_slope(kind: str, eta: float) -> None:
    if kind == "flow":
        steps, start = flow_steps(FLOW, eta), same
    else:
        sigmas = SIGMAS if kind == "ddim" else SIGMAS[:-1]
        steps, start = ddim_steps(sigmas, eta), start_scaled()
    noise_map = SamplerMap(conv_denoiser(), steps, start)
    z = randn(noise_count(steps), 2, CHANNELS, SIDE, SIDE)
    assert max(errors(noise_map, z)) < 1e-8


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_denoiser_that_mixes_in_the_starting_noise_has_its_gradient_too(eta: float) -> None:
    mask = (randn(1, 1, SIDE, SIDE, seed=5) > 0).double() * 0.9
    denoise = MaskedDenoiser(conv_denoiser(), mask, randn(1, CHANNELS, SIDE, SIDE, seed=6))
    noise_map = SamplerMap(denoise, ddim_steps(SIGMAS, eta), start_scaled())
    assert max(errors(noise_map, small_noise(eta=eta, dtype=torch.float64))) < 1e-8


def test_a_starting_map_that_is_not_a_scaling_is_pulled_back() -> None:
    def start(z0: Tensor) -> Tensor:
        return 3 * z0 + 0.5 * z0.roll(1, -1) + 0.1 * z0.square()

    noise_map = SamplerMap(conv_denoiser(), ddim_steps(SIGMAS, 1.0), start)
    assert max(errors(noise_map, small_noise(dtype=torch.float64))) < 1e-8


def test_a_denoiser_that_overwrites_saved_tensors_keeps_its_exact_gradient() -> None:
    z = small_noise(dtype=torch.float64)
    steps = ddim_steps(SIGMAS, 1.0)
    plain = SamplerMap(without_overwriting, steps, start_scaled())
    overwriting = SamplerMap(in_place_denoiser, steps, start_scaled())
    assert torch.equal(plain.forward(z).final, overwriting.forward(z).final)
    x = z[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(in_place_denoiser(x, SIGMAS[0], x).sum(), x)
    weight = randn(*z.shape[1:], seed=9)
    assert relative_error(swept(overwriting, weight, z), swept(plain, weight, z)) < 1e-14
    assert max(errors(overwriting, z)) < 1e-8


def closed_form_linear(steps: tuple[Step, ...], v: Tensor, z: Tensor) -> Tensor:
    """With J = I at every step, v reaches noise i through the product of (a + b) after it."""
    expected = torch.zeros_like(z)
    for step in steps:
        if step.noise is not None:
            expected[step.noise] = step.c * v
            for later in steps[step.index + 1 :]:
                expected[step.noise] *= later.a + later.b
    expected[0] = v * float(torch.sqrt(1 + SIGMAS[0] ** 2))
    for step in steps:
        expected[0] *= step.a + step.b
    return expected


def test_the_linear_mode_is_its_closed_form_and_never_calls_the_denoiser_for_it() -> None:
    calls = []

    def counting(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        calls.append(float(sigma))
        return conv_denoiser()(x, sigma, z0)

    z = small_noise(dtype=torch.float64)
    steps = ddim_steps(SIGMAS, 1.0)
    linear = SamplerMap(counting, steps, start_scaled(), GradientMode("linear"))
    path = linear.forward(z)
    calls.clear()
    v = randn(*z.shape[1:], seed=4)
    assert relative_error(linear.pull(z, path, v), closed_form_linear(steps, v, z)) < 1e-14
    assert calls == []
    one = linear.in_mode(GradientMode("one step", at=0.5))
    one.pull(z, path, v)
    assert calls == [float(SIGMAS[2])], "exactly the step that was asked for is recomputed"


def test_exact_steps_and_linear_steps_mix_as_their_definitions_say() -> None:
    """The last two steps exact: the gradients of the noises after them are exact, others differ."""
    z = small_noise(dtype=torch.float64)
    steps = ddim_steps(SIGMAS, 1.0)
    exact = SamplerMap(conv_denoiser(), steps, start_scaled())
    last_two = exact.in_mode(GradientMode("last k", k=2))
    path = exact.forward(z)
    v = randn(*z.shape[1:], seed=4)
    right, cheap = exact.pull(z, path, v), last_two.pull(z, path, v)
    assert torch.equal(right[3:], cheap[3:])
    assert relative_error(cheap[0], right[0]) > 0.05
    everything = exact.in_mode(GradientMode("last k", k=5))
    assert torch.equal(everything.pull(z, path, v), right)


def narrow_denoiser(half: torch.dtype):  # type: ignore[no-untyped-def]
    def denoise(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        inner = x.to(half)
        return (torch.tanh(inner * 0.5) + 0.25 * inner.roll(1, -1)).to(half)

    return denoise


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_tiny_gradient_does_not_underflow_in_a_half_precision_denoiser(half: torch.dtype) -> None:
    """v of 1e-7 is zero or garbage in float16; each image is brought to O(1) by itself."""
    z = small_noise(dtype=torch.float32)
    steps = ddim_steps(SIGMAS, 1.0)
    coarse = SamplerMap(narrow_denoiser(half), steps, start_scaled())
    wide = SamplerMap(narrow_denoiser(torch.float32), steps, start_scaled())
    v = randn(*z.shape[1:], seed=4, dtype=torch.float32)
    v[0] *= 1e-7
    found = coarse.pull(z, coarse.forward(z), v)
    expected = wide.pull(z, wide.forward(z), v)
    assert found.dtype == torch.float32
    for image in range(2):
        error = relative_error(found[:, image], expected[:, image])
        assert error < (0.03 if half is torch.bfloat16 else 0.005), f"image {image}"


def test_a_tiny_gradient_does_not_underflow_in_a_half_precision_decoder() -> None:
    def decode(x: Tensor) -> Tensor:
        return (torch.tanh(x.half() * 0.3) * 0.4 + 0.5).repeat(1, 2, 1, 1)[:, :3]

    decoder = small_problem(decode=decode).decoder
    x = randn(2, CHANNELS, SIDE, SIDE, dtype=torch.float32)
    v = randn(2, 3, SIDE, SIDE, seed=1, dtype=torch.float32)
    v[0] *= 1e-8
    found = decoder.pull(x, v)
    per_channel = v[:, :2].clone()
    per_channel[:, 0] += v[:, 2]
    expected = per_channel * (1 - torch.tanh(x * 0.3) ** 2) * 0.12
    for image in range(2):
        assert relative_error(found[image], expected[image]) < 0.005


def test_an_image_with_no_gradient_stays_at_zero_beside_one_that_has_some() -> None:
    z = small_noise(dtype=torch.float64)
    noise_map = SamplerMap(conv_denoiser(), ddim_steps(SIGMAS, 1.0), start_scaled())
    v = randn(*z.shape[1:], seed=4)
    v[0] = 0
    dz = noise_map.pull(z, noise_map.forward(z), v)
    assert not dz[:, 0].any() and dz[:, 1].any() and dz.isfinite().all()


def test_neither_noise_nor_latents_nor_v_are_changed_and_no_graph_stays() -> None:
    z = small_noise(dtype=torch.float64)
    steps = ddim_steps(SIGMAS, 1.0)
    path = sample(conv_denoiser(), steps, z, start_scaled())
    v = randn(*z.shape[1:], seed=4)
    kept = [t.clone() for t in (z, v, *path.latents)]
    dz = sweep(conv_denoiser(), steps, path.latents, z[0], v, start_scaled())
    for now, before in zip((z, v, *path.latents), kept, strict=True):
        assert torch.equal(now, before)
    assert not any(t.requires_grad for t in (dz, path.final, *path.latents))


def test_a_pull_through_something_that_ignores_its_input_is_zero() -> None:
    x, unused = randn(2, 3), randn(2, 3, seed=1)
    used, nothing = vjp(lambda a, b: a * 2, [x, unused], torch.ones(2, 3).double())
    assert torch.equal(used, torch.full_like(x, 2.0)) and not nothing.any()
    detached = vjp(lambda a: a.detach() * 2, [x], torch.ones(2, 3).double())
    assert not detached[0].any()
