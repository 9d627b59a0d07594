"""Probes side by side: one wide run gives every image what a run of its own gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import WideMap

from . import tiny
from .runs import inside, request

WIDTH = 3
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
DOUBLE = torch.float64


def prompts(count: int, seed: int, **values: Any) -> Any:
    """A CONDITIONING with a row for every image."""
    rows = [tiny.conditioning(seed + 10 * each)[0][0] for each in range(count)]
    return [[torch.cat(rows), dict(values)]]


def a_mask(count: int = 1) -> Tensor:
    ramps = torch.linspace(0, 1, 8).expand(count, 8, 8)
    return torch.stack([ramp.roll(index, -1) for index, ramp in enumerate(ramps)])


def a_picture(batch: int) -> Tensor:
    return 3 * torch.randn(batch, *tiny.LATENT, generator=torch.Generator().manual_seed(8))


def noises(z: Tensor) -> list[Tensor]:
    """The run's own noise and others of its shape."""
    generator = torch.Generator().manual_seed(4)
    return [z, *(torch.randn(z.shape, generator=generator) for _ in range(WIDTH - 1))]


def room(**changes: Any) -> int:
    """How many of WIDTH wanted probes would run side by side after a forward pass."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> int:
        problem.noise_map.forward(z)
        return problem.noise_map.probe_room(z, WIDTH)

    return inside(request(DOUBLE, **changes), work)


def compare(**changes: Any) -> list[int]:
    """A wide run against separate ones; the costs that were told of the wide run."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[int]:
        noise_map = problem.noise_map
        assert isinstance(noise_map, WideMap)
        separate = [noise_map.forward(each) for each in noises(z)]
        assert noise_map.probe_room(z, WIDTH) == WIDTH
        costs: list[int] = []
        told: Callable[[int], None] = noise_map._on_call
        noise_map._on_call = lambda cost: (costs.append(cost), told(cost))
        wide = noise_map.forward(torch.cat(noises(z), 1))
        noise_map._on_call = told
        for index, part in enumerate(wide.final.split(z.shape[1])):
            torch.testing.assert_close(part, separate[index].final, **CLOSE)
        again = noise_map.forward(z)
        torch.testing.assert_close(again.final, separate[0].final, rtol=0, atol=0)
        assert not torch.allclose(separate[0].final, separate[1].final)
        images = problem.decoder.decode(wide.final)
        alone = torch.cat([problem.decoder.decode(path.final) for path in separate])
        torch.testing.assert_close(images, alone, rtol=1e-5, atol=1e-6)
        return costs

    return inside(request(DOUBLE, **changes), work)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_wide_run_equals_separate_runs(batch: int, eta: float) -> None:
    assert compare(batch=batch, eta=eta) == [WIDTH] * 3, "its cost is that of all its noises"


def test_every_image_keeps_its_own_prompt() -> None:
    compare(batch=3, positive=prompts(3, 1), negative=prompts(3, 2))


def test_a_noise_mask_and_a_picture_for_every_image_stay_with_it() -> None:
    latent = {"samples": a_picture(3), "noise_mask": a_mask(3)}
    compare(latent=latent, denoise=0.7)
    compare(latent={"samples": a_picture(1), "noise_mask": a_mask(1)})


def test_a_controlnet_with_one_hint_and_an_area_run_wide() -> None:
    control = tiny.control_net(strength=0.7)
    area = tiny.conditioning(3, area=(4, 4, 2, 0), strength=0.8, set_area_to_bounds=False)
    masked = tiny.conditioning(4, mask=a_mask(), mask_strength=0.9, set_area_to_bounds=False)
    compare(
        batch=2,
        positive=tiny.conditioning(1, control=control, control_apply_to_uncond=True)
        + area
        + masked,
    )


def test_a_hook_lora_with_keyframes_has_its_strengths_in_a_wide_run_too() -> None:
    model = tiny.sd_model(DOUBLE)
    hooks = tiny.hook_lora(model, keyframes=True)
    compare(
        model=model,
        positive=tiny.conditioning(1, hooks=hooks),
        negative=tiny.conditioning(2, hooks=hooks),
    )


def test_flux_runs_wide() -> None:
    compare(
        model=tiny.flux_model(DOUBLE),
        vae=tiny.flux_vae(DOUBLE),
        positive=tiny.flux_conditioning(1),
        negative=tiny.flux_conditioning(2),
        latent={"samples": torch.zeros(2, 16, 8, 8)},
        cfg=1.0,
    )


def patched(name: str) -> Any:
    """A model with a patch of ComfyUI's own that looks at the whole batch, or might."""
    from comfy_extras import nodes_freelunch, nodes_lumina2, nodes_mahiro

    model = tiny.sd_model(DOUBLE)
    if name == "mahiro":
        return nodes_mahiro.Mahiro.execute(model).result[0]
    if name == "renorm":
        return nodes_lumina2.RenormCFG.execute(model, 100.0, 1.0).result[0]
    if name == "free_u":
        return nodes_freelunch.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).result[0]
    clone = model.clone()
    clone.add_wrapper_with_key("diffusion_model", "someone", lambda run, *a, **k: run(*a, **k))
    return clone


@pytest.mark.parametrize("name", ["mahiro", "renorm", "free_u", "wrapper"])
def test_patches_that_may_look_at_the_whole_batch_are_run_one_probe_at_a_time(name: str) -> None:
    assert room() == WIDTH
    assert room(model=patched(name)) == 1


@pytest.mark.parametrize("rows", [2, 5])
def test_prompts_that_do_not_fit_the_batch_are_run_one_probe_at_a_time(rows: int) -> None:
    """ComfyUI repeats or cuts them to a batch of 3; a wide one would deal them out otherwise."""
    assert room(batch=3, positive=prompts(rows, 1)) == 1
    assert room(batch=3, positive=prompts(3, 1)) == WIDTH


def test_masks_that_do_not_fit_the_batch_are_run_one_probe_at_a_time() -> None:
    masked = tiny.conditioning(4, mask=a_mask(2), mask_strength=0.9, set_area_to_bounds=False)
    assert room(batch=4, positive=masked) == 1


def test_a_controlnet_with_a_hint_for_every_image_is_run_one_probe_at_a_time() -> None:
    control = tiny.control_net(strength=0.7)
    control.set_cond_hint(torch.rand(2, 3, 64, 64, dtype=DOUBLE))
    positive = tiny.conditioning(1, control=control, control_apply_to_uncond=True)
    assert room(batch=2, positive=positive) == 1


def test_a_patch_that_rolls_dice_is_run_one_probe_at_a_time() -> None:
    """It would roll other dice for other images."""

    def rolls(q: Tensor, k: Tensor, v: Tensor, extra_options: Any) -> Any:
        return q + 0.1 * torch.randn_like(q), k, v

    model = tiny.sd_model(DOUBLE)
    assert room(model=model) == WIDTH
    model.set_model_attn2_patch(rolls)
    assert room(model=model) == 1


def test_the_room_is_that_of_the_memory_and_the_same_in_every_run_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.model_management

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[int]:
        found = []
        need = problem.noise_map._guider.inner_model.memory_required([2, *z.shape[2:]])
        for total in (0, 40 * need, 41 * need, 2**60):
            monkeypatch.setattr(
                comfy.model_management, "get_total_memory", lambda *_, total=total: total
            )
            found.append(problem.noise_map.probe_room(z, 0))
        return found

    assert inside(request(), work) == [1, 5, 5, 64]


def test_a_gradient_after_wide_probes_is_the_one_before_them() -> None:
    """The sweep recomputes the run's own path, whatever was run in between."""
    model = tiny.sd_model(DOUBLE)
    hooks = tiny.hook_lora(model, keyframes=True)
    latent = {"samples": a_picture(2), "noise_mask": a_mask(2)}

    def work(problem: Any, z: Tensor, to_latent: Any) -> list[Tensor]:
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        before = problem.gradient(z, evaluation, evaluation.image_gradient)
        problem.noise_map.forward(torch.cat(noises(z), 1))
        after = problem.gradient(z, evaluation, evaluation.image_gradient)
        return [before, after]

    asked = request(
        DOUBLE,
        model=model,
        positive=tiny.conditioning(1, hooks=hooks),
        negative=tiny.conditioning(2, hooks=hooks),
        latent=latent,
        denoise=0.7,
    )
    before, after = inside(asked, work)
    assert before.abs().max() > 0
    torch.testing.assert_close(before, after, rtol=0, atol=0)
