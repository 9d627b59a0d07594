"""The bench that every method works at: ComfyUI, the demo model, and noise drawn seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from comfyui_dno.dno_core import Problem, Term

from ..checkout import start_comfyui
from .cases import Case
from .counting import Costs, CountingDecoder, CountingMap

STEPS, CFG, SCHEDULER = 8, 3.0, "normal"
LATENT = (8, 16, 16)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Bench:
    """What a method is given: a problem of B images, each with a prompt and a seed of its own.

    `z` [N,B,C,h,w] holds for every image the noise that its seed alone would draw. `problem` and
    all below charge `costs`, except `noise_map` and `decoder`, the bare ones: who uses those
    charges by hand.
    """

    cases: tuple[Case, ...]
    problem: Problem
    z: Tensor
    costs: Costs
    noise_map: Any
    decoder: Any

    @property
    def key(self) -> int:
        return self.cases[0].seed


class Lab:
    """The demo model in ComfyUI, loaded once a process."""

    def __init__(self) -> None:
        start_comfyui()
        from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model

        self.model, self.clip, self.vae = load_demo_model()

    def at_bench(
        self,
        cases: Sequence[Case],
        terms: tuple[Term, ...],
        work: Callable[[Bench], Found],
        *,
        eta: float = 1.0,
        steps: int = STEPS,
        cfg: float = CFG,
    ) -> Found:
        """Run `work` where the noise-to-latent map lives: inside ComfyUI's own guider."""
        import comfy.samplers

        from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder
        from comfyui_dno.nodes.comfy_bridge.loading import reward_patchers, run_model
        from comfyui_dno.nodes.comfy_bridge.sampling import NoiseOptimizationSampler, guided
        from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope

        found: list[Found] = []
        seeds = [case.seed for case in cases]

        def drive(noise_map: Any, to_latent: Callable[[Tensor], Tensor], *_: Any) -> Tensor:
            costs = Costs(len(cases))
            decoder = BlockDecoder(self.vae, to_latent, lambda: None)
            counted = CountingMap(noise_map, costs), CountingDecoder(decoder, costs)
            problem = Problem(*counted, terms)
            z = draw(seeds, noise_map.steps)
            found.append(work(Bench(tuple(cases), problem, z, costs, noise_map, decoder)))
            return torch.zeros(len(cases), *LATENT)

        with gradient_scope():
            companions = [self.vae.patcher, *reward_patchers(term.reward for term in terms)]
            model = run_model(self.model, companions)
            latent = torch.zeros(len(cases), *LATENT)
            positive = self.encode([case.prompt for case in cases])
            negative = self.encode([""] * len(cases))
            stock = comfy.samplers.CFGGuider(self.model)
            stock.set_conds(positive, negative)
            stock.set_cfg(cfg)
            with guided(stock, model, latent) as guider:
                guider.sample(
                    torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)),
                    latent,
                    NoiseOptimizationSampler(eta, lambda cost: None, drive, starting_noise),
                    self.sigmas(steps, eta),
                    disable_pbar=True,
                    seed=0,
                )
        return found[0]

    def encode(self, prompts: Sequence[str]) -> Any:
        """One CONDITIONING whose rows are the prompts: every image of the batch has its own."""
        tokens = [self.clip.tokenize(text) for text in prompts]
        encoded = [self.clip.encode_from_tokens_scheduled(each)[0] for each in tokens]
        options = dict(encoded[0][1])
        if isinstance(options.get("pooled_output"), Tensor):
            options["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in encoded])
        return [[torch.cat([entry[0] for entry in encoded]), options]]

    def sigmas(self, steps: int, eta: float) -> Tensor:
        import comfy.samplers

        name = "euler" if eta == 0 else "euler_ancestral"
        device = self.model.load_device
        return comfy.samplers.KSampler(self.model, steps, device, name, SCHEDULER, 1.0).sigmas


def draw(seeds: Sequence[int], steps: Any) -> Tensor:
    """Noise [N,B,C,h,w]: for every image what the stock sampler draws for its seed alone."""
    from comfyui_dno.nodes.comfy_bridge.sampling import draw_noise

    return torch.cat([draw_noise(starting_noise(seed), steps, seed) for seed in seeds], dim=1)


def starting_noise(seed: int) -> Tensor:
    import comfy.sample

    return comfy.sample.prepare_noise(torch.zeros(1, *LATENT), seed)


def climbed(reward: str, cases: Sequence[Case], **options: Any) -> tuple[Term, ...]:
    """The one term that a run climbs: a registered reward, with the cases' prompts if it reads."""
    from comfyui_dno import rewards

    context = rewards.Context(prompts=tuple(case.prompt for case in cases))
    return (Term(rewards.create(reward, **options), context=context),)
