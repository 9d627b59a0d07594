"""Runs of DNO Sampler on the demo model, and a way to do something between their iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from checkout import start_comfyui
from published import Published
from torch import Tensor

PROMPTS = ("cat face", "red apple on blue", "sunflower", "penguin")
SEED, CFG, SCHEDULER, LEARNING_RATE = 11, 3.0, "normal", 0.03
PIXELS = 64
CELL = 4
"""Pixels a latent cell, each way."""


@dataclass(frozen=True)
class Inside:
    """What there is in the middle of a run: its problem, its noise, the way from x_T to LATENT."""

    request: Any
    problem: Any
    z: Tensor
    to_latent: Callable[[Tensor], Tensor]

    @property
    def sigmas(self) -> list[Tensor]:
        """T + 1 of them; the first T are those that `denoise` knows."""
        steps = self.problem.noise_map.steps
        return [*(step.sigma for step in steps), torch.zeros_like(steps[0].sigma)]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.problem.noise_map.denoise(x, sigma, self.z[0])

    def decode(self, x: Tensor) -> Tensor:
        """x_T -> image, in one differentiable piece as VAE Decode computes it, not clamped."""
        from comfyui_dno.nodes.comfy_bridge.decoding import output_range

        vae = self.request.vae
        offset, slope = output_range(vae)
        latent = self.to_latent(x).to(device=vae.device, dtype=vae.vae_dtype)
        return vae.first_stage_model.decode(latent).to(x) * slope + offset

    def reward(self, image: Tensor) -> Tensor:
        """In units of the objective, of the picture as it is saved."""
        from comfyui_dno.rewards.base import clamp_straight_through

        (term,) = self.request.terms
        shown = clamp_straight_through(image, 0.0, 1.0)
        return term.reward.score(shown, term.context) / term.reward.scale

    def published(self, **options: Any) -> Published:
        """The published algorithm on the same problem, from the same noise."""
        return Published(
            self.denoise,
            self.sigmas,
            self.request.eta,
            self.decode,
            self.reward,
            self.z,
            forget_texts=self.forget_texts,
            **options,
        )

    def forget_texts(self) -> None:
        """As if the prompt had never been embedded."""
        from comfyui_dno.rewards.towers.texts import TextMemory

        self.request.terms[0].reward.tower.texts = TextMemory()


def demo_request(
    steps: int, iterations: int, batch: int = 1, pixels: int = PIXELS, **changes: Any
) -> Any:
    """CLIPScore climbed on the demo model with the exact gradient and the default regularizer.

    `changes` go to the Request. ComfyUI is started if it is not.
    """
    start_comfyui()
    from comfyui_dno.nodes.drawing import KSamplerDrawing
    from comfyui_dno.nodes.request import Request

    model, clip, vae = _demo()
    prompts = (PROMPTS * batch)[:batch]
    latent = torch.zeros(batch, 8, pixels // CELL, pixels // CELL)
    drawing = KSamplerDrawing(
        model,
        _encode(clip, prompts),
        _encode(clip, ("",) * batch),
        SEED,
        steps,
        CFG,
        SCHEDULER,
        1.0,
    )
    return Request(
        drawing=drawing,
        latent={"samples": latent},
        vae=vae,
        terms=_terms(prompts),
        iterations=iterations,
        learning_rate=LEARNING_RATE,
        check_gradient=False,
        **changes,
    )


def run_around(request: Any, make: Callable[[Inside, Iterator[Any]], Iterator[Any]]) -> Any:
    """Run the node with `make(inside, iterations)` between its optimization and its climb.

    `make` passes the iterations on, and can look at the clock or do work of its own before and
    after each; it may end the run by ending. The node's Result.
    """
    from comfyui_dno.nodes import climb as climbing
    from comfyui_dno.nodes import optimization

    climb, optimize = climbing.climb, climbing.optimize

    def climb_inside(
        request: Any, problem: Any, z: Tensor, to_latent: Any, *rest: Any, **named: Any
    ) -> Any:
        inside = Inside(request, problem, z, to_latent)

        def optimize_around(*args: Any, **options: Any) -> Iterator[Any]:
            return make(inside, optimize(*args, **options))

        with mock.patch.object(climbing, "optimize", optimize_around):
            return climb(request, problem, z, to_latent, *rest, **named)

    with mock.patch.object(optimization, "climb", climb_inside):
        return optimization.run(request)


def _terms(prompts: Sequence[str]) -> tuple[Any, ...]:
    from comfyui_dno import rewards
    from comfyui_dno.dno_core import Term

    context = rewards.Context(prompts=tuple(prompts))
    return (Term(rewards.create("clip_score"), context=context),)


_loaded: list[Any] = []


def _demo() -> Any:
    from comfyui_dno.nodes.comfy_bridge.demo_model import load_demo_model

    if not _loaded:
        _loaded.append(load_demo_model())
    return _loaded[0]


def _encode(clip: Any, prompts: Sequence[str]) -> Any:
    """One CONDITIONING whose rows are the prompts."""
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in prompts]
    options = dict(encoded[0][1])
    if isinstance(options.get("pooled_output"), Tensor):
        options["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in encoded])
    return [[torch.cat([entry[0] for entry in encoded]), options]]
