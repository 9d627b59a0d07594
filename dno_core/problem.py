"""One problem: from noise to scores, and from scores back to the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .noise_map.graph import forward_to_pull
from .noise_map.sampler import NoiseMap, Path, vjp_unit
from .objective import Term, TermInfo, objective


class Decoder(Protocol):
    """Latent x_T [B,C,h,w] -> image float32 [B,3,H,W], nominally in [0,1] but not clamped."""

    def decode(self, x: Tensor) -> Tensor: ...

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        """J^T v for v = d objective / d image."""
        ...


@dataclass(frozen=True)
class FunctionDecoder:
    """A decoder from a plain differentiable function, recomputed whole for its gradient."""

    function: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return self.function(x).float()

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        return vjp_unit(self.function, [x], v)[0]


@dataclass(frozen=True)
class Evaluation:
    """What one noise gave: `image` [B,3,H,W] clamped as it will be saved, `scores` [K,B],
    `objective` [B] under `weights`, `saturated` [B] the share of clamped pixel values,
    `image_gradient` [B,3,H,W] = d objective / d image where it was asked for.
    """

    path: Path
    image: Tensor
    scores: Tensor
    objective: Tensor
    saturated: Tensor
    weights: tuple[float, ...]
    image_gradient: Tensor | None = None


class NonFinite(RuntimeError):
    """A NaN or an infinity came out of the model, the decoder, the reward or the gradient."""


@dataclass(frozen=True)
class Problem:
    """maximize sum of weight * goal(reward(M(z))) / scale over the noise z [N,B,C,H,W]."""

    noise_map: NoiseMap
    decoder: Decoder
    terms: tuple[Term, ...]

    @property
    def infos(self) -> tuple[TermInfo, ...]:
        return tuple(term.info for term in self.terms)

    def evaluate(
        self, z: Tensor, weights: Sequence[float], differentiate: bool = False
    ) -> Evaluation:
        """Forward, decode, score. Raises NonFinite where the result is not a number.

        With `differentiate` the map may keep graphs, for `gradient` to use up.
        """
        path = forward_to_pull(self.noise_map, z) if differentiate else self.noise_map.forward(z)
        try:
            raw = self.decoder.decode(path.final)
            _require_finite(raw, "The decoded image")
            image = raw.clamp(0, 1)
            saturated = (raw != image).flatten(1).float().mean(1)
            scores, total, gradient = self.score(image, weights, differentiate)
        except BaseException:
            path.drop()
            raise
        return Evaluation(path, image, scores, total, saturated, tuple(weights), gradient)

    def score(
        self, image: Tensor, weights: Sequence[float], differentiate: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores [K,B], objective [B] and, if asked, d objective / d image.

        Each term's graph is freed before the next term is scored.
        """
        scores, gradient = [], torch.zeros_like(image) if differentiate else None
        for term, weight in zip(self.terms, weights, strict=True):
            wanted = gradient is not None and weight != 0 and term.reward.differentiable
            with torch.set_grad_enabled(wanted):
                leaf = image.detach().requires_grad_(wanted)
                score = term.reward.score(leaf, term.context)
                _require_one_score_an_image(score, len(image), term.reward.name)
                if gradient is not None and wanted:
                    part = objective([term.info], score[None], [weight]).sum()
                    gradient += _slope(part, leaf, term.reward.name)
            _require_finite(score, f"The score of '{term.reward.name}'")
            scores.append(score.detach().float().to(image.device))
        stacked = torch.stack(scores)
        return stacked, objective(self.infos, stacked, weights), gradient

    def gradient(self, z: Tensor, evaluation: Evaluation, image_gradient: Tensor) -> Tensor:
        """d objective / d z for a given d objective / d image: decode and sweep, pulled back."""
        try:
            v = self.decoder.pull(evaluation.path.final, image_gradient)
            return self.noise_map.pull(z, evaluation.path, v)
        finally:
            evaluation.path.drop()


def _require_one_score_an_image(score: object, images: int, name: str) -> None:
    if not isinstance(score, Tensor):
        raise TypeError(
            f"The reward '{name}' gave {type(score).__name__}, not a tensor. "
            f"Make it return one score an image: a tensor of shape [{images}]."
        )
    if score.shape != (images,):
        raise ValueError(
            f"The reward '{name}' gave a tensor of shape {list(score.shape)} for {images} images. "
            f"Make it return one score an image: shape [{images}]."
        )


SLOPE_SCALES = (2.0**12, 1.0)
"""A mean over pixels gives each 1e-6, which half precision loses: the objective is lifted by the
first of these (exact: a power of 2) unless that overflows."""


def _slope(part: Tensor, image: Tensor, name: str) -> Tensor:
    slope = None
    for scale in SLOPE_SCALES if part.requires_grad else ():
        last = scale == SLOPE_SCALES[-1]
        (slope,) = torch.autograd.grad(
            part * scale, image, retain_graph=not last, allow_unused=True
        )
        if slope is None:
            break
        slope = slope / scale
        if last or bool(torch.isfinite(slope).all()):
            break
    if slope is None:
        raise ValueError(
            f"The reward '{name}' is said to be differentiable and detaches its score. Mark it "
            "as not differentiable, or compute it in torch from the image to the score."
        )
    return slope


def _require_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFinite(
            f"{what} holds NaN or infinity. Lower the learning rate, or run the model in a wider "
            "precision (bf16 or fp32)."
        )
