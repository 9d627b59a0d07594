"""DNO Sampler (Advanced): any guider, any schedule, any noise."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core import Hybrid2

from . import tiny
from .fingerprint import fingerprint
from .runs import gradient_errors, inside, iteration_zero, request, wavy_reward

SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.0])


def cfg_guider(model: Any, dtype: torch.dtype) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning(1, dtype), tiny.conditioning(2, dtype))
    guider.set_cfg(3.0)
    return guider


def basic_guider(model: Any, dtype: torch.dtype) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    guider = Guider_Basic(model)
    guider.set_conds(tiny.conditioning(1, dtype))
    return guider


def dual_cfg_guider(model: Any, dtype: torch.dtype) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(*(tiny.conditioning(seed, dtype) for seed in (1, 3, 2)))
    guider.set_cfg(2.0, 4.0)
    return guider


def dual_model_guider(model: Any, dtype: torch.dtype) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    other = tiny.sd_model(dtype)
    tiny.randomize(other.model.diffusion_model, seed=7)
    guider = Guider_DualModel(model, other)
    guider.set_conds(tiny.conditioning(1, dtype), tiny.conditioning(2, dtype))
    guider.set_cfg(2.5)
    return guider


GUIDERS = [cfg_guider, basic_guider, dual_cfg_guider, dual_model_guider]


def random_noise(seed: int) -> Any:
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed)


def advanced(
    make: Any = cfg_guider,
    dtype: torch.dtype = torch.float32,
    sigmas: Tensor = SIGMAS,
    noise: Any = None,
    **changes: Any,
) -> Any:
    from comfyui_dno.nodes.drawing import GuiderDrawing

    guider = make(tiny.sd_model(dtype), dtype)
    source = random_noise(5) if noise is None else noise
    return request(dtype, drawing=GuiderDrawing(guider, sigmas, source), **changes)


def stock(asked: Any) -> Tensor:
    """What the node SamplerCustomAdvanced gives for the same inputs."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    from comfyui_dno.nodes.comfy_bridge.sampling import stock_sampler

    drawing = asked.drawing
    given = (drawing.given_noise, drawing.given, stock_sampler(asked.eta), drawing.given_sigmas)
    assert isinstance(given[2], comfy.samplers.Sampler)
    return SamplerCustomAdvanced.execute(*given, asked.latent).args[0]["samples"]


def latent(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    samples = torch.randn(batch, *tiny.LATENT, generator=generator) * 3
    return {"samples": samples, "noise_mask": torch.linspace(0, 1, 32).expand(1, 32, 32).clone()}


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("make", GUIDERS)
def test_it_starts_from_the_picture_of_sampler_custom_advanced(make: Any, eta: float) -> None:
    from comfyui_dno.nodes import optimization

    asked = advanced(make, eta=eta, latent=latent())
    expected = stock(asked)
    assert expected.std() > 0
    assert torch.equal(iteration_zero(asked), expected)
    result = optimization.run(dataclasses.replace(asked, iterations=0))
    assert torch.equal(result.latent["samples"], expected)


def test_it_starts_where_split_sigmas_leaves_off() -> None:
    low = SIGMAS[1:]
    asked = advanced(sigmas=low, latent=latent())
    assert torch.equal(iteration_zero(asked), stock(asked))


@pytest.mark.parametrize("make", GUIDERS)
def test_the_gradient_equals_central_differences(make: Any) -> None:
    asked = advanced(make, torch.float64, terms=(wavy_reward(),))
    assert max(gradient_errors(asked)) < 1e-5


def test_the_guider_is_left_as_it_was() -> None:
    from comfyui_dno.nodes import optimization

    asked = advanced(dual_model_guider)
    guider = asked.drawing.given

    def state() -> dict[str, Any]:
        return {
            name: id(value) if name.endswith("model_patcher") else fingerprint(value)
            for name, value in vars(guider).items()
        }

    weights = fingerprint(dict(guider.uncond_model_patcher.model.state_dict()))
    before = state()
    with torch.inference_mode():
        optimization.run(asked)
    assert state() == before
    assert fingerprint(dict(guider.uncond_model_patcher.model.state_dict())) == weights


def test_options_that_a_guider_has_of_its_own_take_part() -> None:
    import comfy.model_patcher

    asked = advanced()
    plain = iteration_zero(asked)
    guider = asked.drawing.given
    options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    options["sampler_cfg_function"] = lambda args: args["cond"] * 1.1
    guider.model_options = options
    assert torch.equal(iteration_zero(asked), stock(asked))
    assert not torch.equal(iteration_zero(asked), plain)


@pytest.mark.parametrize(("make", "alone"), [(cfg_guider, False), (dual_cfg_guider, True)])
def test_a_guider_with_its_own_arithmetic_gets_its_probes_one_by_one(
    make: Any, alone: bool
) -> None:
    room = inside(advanced(make), lambda problem, z, _: problem.noise_map.probe_room(z, 4))
    assert room == (1 if alone else 4)


def test_seeds_are_screened_as_random_noise_would_draw_them() -> None:
    from comfyui_dno.nodes import optimization

    first = optimization.run(advanced(screen_seeds=3, iterations=1)).trajectory.records[0]
    alone = [
        optimization.run(advanced(noise=random_noise(seed), iterations=0)).trajectory.records[0]
        for seed in (5, 6, 7)
    ]
    best = max(record.scores[0][0] for record in alone)
    assert math.isclose(first.scores[0][0], best, rel_tol=1e-5)


def test_a_black_box_climbs_with_it() -> None:
    from comfyui_dno.nodes import optimization

    trajectory = optimization.run(advanced(estimator=Hybrid2(probes=2))).trajectory
    assert trajectory.last == 2
    assert trajectory.records[1].scores != trajectory.records[0].scores


def test_it_is_resumed_only_on_the_same_schedule() -> None:
    from comfyui_dno.dno_core.trajectories.continuation import NotTheSameRun
    from comfyui_dno.nodes import optimization

    whole = optimization.run(advanced(iterations=3)).trajectory
    first = optimization.run(advanced(iterations=2)).trajectory
    resumed = optimization.run(advanced(iterations=3, resume=first)).trajectory
    assert [r.scores for r in resumed.records] == [r.scores for r in whole.records]
    with pytest.raises(NotTheSameRun, match="other sigmas"):
        optimization.run(advanced(sigmas=SIGMAS * 1.5, iterations=3, resume=first))


def disabled_noise() -> Any:
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    return Noise_EmptyNoise()


@pytest.mark.parametrize(
    ("sigmas", "complaint"),
    [
        (SIGMAS[:-1], "end at 0"),
        (SIGMAS.flip(0), "fall from step to step"),
        (torch.tensor([0.0]), "holds no step"),
        (torch.tensor([]), "holds no step"),
    ],
)
def test_a_schedule_that_is_no_whole_way_to_a_picture_is_refused(
    sigmas: Tensor, complaint: str
) -> None:
    from comfyui_dno.nodes import optimization

    with pytest.raises(ValueError, match=complaint):
        optimization.run(advanced(sigmas=sigmas))


def test_disabled_noise_is_refused() -> None:
    from comfyui_dno.nodes import optimization

    with pytest.raises(ValueError, match="Random Noise"):
        optimization.run(advanced(noise=disabled_noise()))
