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


@dataclass(frozen=True)
class FullQuality:
    """How the pictures of a run are drawn at full quality.

    `means`: in words. `sample(z)` gives the LATENT [B,C,h,w] of noise z on the full schedule, which
    has so many `steps`; iterations that took all of them are not sampled again. `first_noise()`:
    the noise [N,B,...] of iteration 0, on the `device` of the run. `vae()`: the full one, made when
    needed.
    """

    means: str
    sample: Callable[[Tensor], Tensor]
    steps: int
    first_noise: Callable[[], Tensor]
    vae: Callable[[], Any]
    device: Any
    progress: Progress

    def redraw(self, trajectory: Trajectory, problem: Problem, better: bool = True) -> Trajectory:
        """The run with its winner and iteration 0 drawn again, and the better of both taken.

        Not `better`: the winner is returned whatever it is, as the artist asked for that one.
        """
        begun = time.perf_counter()
        self.progress.text(f"Drawing the best and the first picture with {self.means}.")
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
        """The best iteration of every image; where it would have to be sampled and its noise was
        not kept, because the weights have made another one the best since, the last best whose
        noise was."""
        last = len(trajectory.records) - 1
        pairs = zip(trajectory.best, trajectory.best_noise_at, strict=True)
        return tuple(
            best if best in (0, last) or self._is_sampled(trajectory, best) else kept
            for best, kept in pairs
        )

    def _is_sampled(self, trajectory: Trajectory, place: int) -> bool:
        """Whether an iteration took all the steps."""
        return trajectory.records[place].steps == self.steps

    def _latents(
        self, trajectory: Trajectory, pictures: tuple[tuple[int, ...], ...]
    ) -> list[Tensor]:
        """The LATENT [B,...] on the CPU of every choice of one iteration an image."""
        found = []
        for places in pictures:
            latents = trajectory.take(trajectory.latents, places)
            missing = [
                i for i, place in enumerate(places) if not self._is_sampled(trajectory, place)
            ]
            if missing:
                sampled = self.sample(self._noise(trajectory, places)).to(latents)
                latents[missing] = sampled[missing]
            found.append(latents)
        return found

    def _noise(self, trajectory: Trajectory, places: tuple[int, ...]) -> Tensor:
        """[N,B,...]: for every image that of the iteration given for it, where it is to be had."""
        last = len(trajectory.records) - 1
        noise = self.first_noise().clone()
        for image, place in enumerate(places):
            if place:
                kept = trajectory.last_noise if place == last else trajectory.best_noise
                noise[:, image] = kept[:, image].to(noise)
        return noise

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
