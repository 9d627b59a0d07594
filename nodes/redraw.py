"""After a climb with fewer steps or a tiny VAE: winner and first picture at full quality."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..dno_core import Path, Problem, Redraw, Trajectory
from ..dno_core.trajectories.redraw import at_least_as_good
from ..dno_core.trajectories.trajectory import to_uint8
from .comfy_bridge.decoding import BlockDecoder
from .comfy_bridge.loading import reward_patchers
from .comfy_bridge.progress import Progress
from .report import lost_lines

REDRAWN_PICTURES = 2
"""Iteration 0 and the winner."""


@dataclass(frozen=True)
class FullQuality:
    """How the pictures of a run are drawn at full quality.

    `means`: in words. `sample(z)` gives the LATENT [B,C,h,w] of noise z on the full schedule; None
    where the iterations took all of it, so that theirs are taken. `first_noise()`: the noise
    [N,B,...] of iteration 0, on the `device` of the run. `vae()`: the full one, made when needed.
    """

    means: str
    sample: Callable[[Tensor], Tensor] | None
    first_noise: Callable[[], Tensor]
    vae: Callable[[], Any]
    device: Any
    progress: Progress

    def redraw(self, trajectory: Trajectory, problem: Problem, better: bool = True) -> Trajectory:
        """The run with its winner and iteration 0 drawn again, and the better of both taken.

        Not `better`: the winner is returned whatever it is, as the artist asked for that one.
        """
        begun = time.perf_counter()
        self.progress.text(f"Drawing the best again with {self.means}.")
        winners = self._winners(trajectory)
        first = (0,) * trajectory.batch
        pictures = (first, winners) if winners != first else (first,)
        latents = self._latents(trajectory, pictures)
        judge = replace(problem, noise_map=_Sampled(), decoder=self._decoder(problem, latents[0]))
        weights = trajectory.records[-1].settings.weights
        found = [judge.evaluate(latent.to(self.device), weights) for latent in latents]
        images = [to_uint8(each.image) for each in found]
        self.progress.show(images[-1])
        before, after = _rows(found[0].scores), _rows(found[-1].scores)
        taken = at_least_as_good(trajectory.terms, before, after, weights)
        redraw = Redraw(
            winners=winners,
            taken=taken if better else (True,) * trajectory.batch,
            before=before,
            after=after,
            seconds=time.perf_counter() - begun,
            latents=torch.stack([latents[0], latents[-1]]),
            images=torch.stack([images[0], images[-1]]),
        )
        warnings = (*trajectory.warnings, *lost_lines(redraw))
        return replace(trajectory.with_redraw(redraw), warnings=warnings)

    def _winners(self, trajectory: Trajectory) -> tuple[int, ...]:
        """The best iteration of every image; where its noise was not kept, because the weights
        have made another one the best since, the last best whose noise was."""
        if self.sample is None:
            return trajectory.best
        last = len(trajectory.records) - 1
        pairs = zip(trajectory.best, trajectory.best_noise_at, strict=True)
        return tuple(best if best in (0, last) else kept for best, kept in pairs)

    def _latents(
        self, trajectory: Trajectory, pictures: tuple[tuple[int, ...], ...]
    ) -> list[Tensor]:
        """The LATENT [B,...] on the CPU of every choice of one iteration an image."""
        if self.sample is None:
            return [trajectory.take(trajectory.latents, places) for places in pictures]
        first, last = self.first_noise(), len(trajectory.records) - 1
        found = []
        for places in pictures:
            noise = first.clone()
            for image, place in enumerate(places):
                if place:
                    kept = trajectory.last_noise if place == last else trajectory.best_noise
                    noise[:, image] = kept[:, image].to(noise)
            found.append(self.sample(noise).cpu())
        return found

    def _decoder(self, problem: Problem, latent: Tensor) -> BlockDecoder:
        """Of the full VAE, which is loaded now with the rewards; the denoiser may make room."""
        vae = self.vae()
        comfy.model_management.load_models_gpu(
            [vae.patcher, *reward_patchers(term.reward for term in problem.terms)],
            memory_required=vae.memory_used_decode([1, *latent.shape[1:]], vae.vae_dtype),
        )
        return BlockDecoder(vae, lambda latent: latent, self.progress.call)


class _Sampled:
    """The map of latents that are sampled already: M(z) = z."""

    def forward(self, z: Tensor) -> Path:
        return Path((), z)

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor:
        return v


def _rows(scores: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in scores.cpu().double().tolist())
