"""Going on with an earlier run: is this the same problem? Said before anything is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..objective import TermInfo

LATENT_TOLERANCE = 0.05
"""Relative RMS difference of x_T that another machine or precision may make."""

IMAGE_TOLERANCE = 4.0
"""Mean difference of the image, in levels of 255."""

SCORE_TOLERANCE = 0.05
"""Difference of a score, in units of the reward's scale (its spread over plain samples)."""


class NotTheSameRun(ValueError):
    """The run to go on with is one of another model, VAE, reward or size."""


@dataclass(frozen=True)
class Outcome:
    """What a noise gave: `latent` [B,C,h,w], `image` uint8 [B,H,W,3], `scores` [K,B]."""

    latent: Tensor
    image: Tensor
    scores: Tensor


def require_same_terms(before: Sequence[TermInfo], now: Sequence[TermInfo]) -> None:
    """Raise NotTheSameRun unless the rewards are the same; weight and watch only may differ."""
    names = [", ".join(f"'{term.name}'" for term in terms) for terms in (before, now)]
    if names[0] != names[1]:
        raise NotTheSameRun(
            f"The run to resume was scored by {names[0]} and this one has {names[1]}. "
            "Connect the same rewards in the same order."
        )
    for old, new in zip(before, now, strict=True):
        for what in ("scale", "goal", "target"):
            a, b = getattr(old, what), getattr(new, what)
            if a != b:
                raise NotTheSameRun(
                    f"The {what} of the reward '{old.name}' was {a} in the run to resume and is "
                    f"{b} here. Set it back, or begin a new run."
                )


def require_same_shape(before: Tensor, now: Tensor) -> None:
    """Raise NotTheSameRun unless both noises [N,B,C,h,w] have one shape, and name what differs."""
    meanings = ("noise tensors (steps, eta)", "images (batch size)", "channels", "rows", "columns")
    if before.ndim != now.ndim:
        raise NotTheSameRun(
            f"The noise of the run to resume has shape {list(before.shape)}, this one's has "
            f"{list(now.shape)}. Connect the kind of latent that the run was begun with."
        )
    for place, (a, b) in enumerate(zip(before.shape, now.shape, strict=True)):
        if a != b:
            what = meanings[place] if place < len(meanings) else f"dimension {place}"
            raise NotTheSameRun(
                f"The run to resume has {a} {what} and this one {b}. "
                "Connect a latent of the same size and batch, and keep steps and eta."
            )


def require_same_outcome(
    terms: Sequence[TermInfo], index: int, before: Outcome, now: Outcome
) -> None:
    """Hold a new evaluation of the last noise against what was recorded of it.

    On one machine both are equal to the bit; the tolerances are for others. Latent, image and
    scores are compared in this order, so that the error can say where the difference begins.
    Raises NotTheSameRun.
    """
    same = f"Iteration {index} of the run to resume comes out differently here"
    if before.latent.shape != now.latent.shape or before.image.shape != now.image.shape:
        raise NotTheSameRun(
            f"{same}: its image is of size {list(before.image.shape)} and now "
            f"{list(now.image.shape)}. Connect the latent and the VAE it was begun with."
        )
    spread = _rows(before.latent).norm(dim=1).clamp_min(1e-30)
    latent = float(((_rows(now.latent) - _rows(before.latent)).norm(dim=1) / spread).amax())
    if not latent <= LATENT_TOLERANCE:
        raise NotTheSameRun(
            f"{same}: its latent differs by {latent:.0%}. Connect the model, LoRA, prompts, "
            "latent and mask that it was begun with."
        )
    image = float((_rows(now.image) - _rows(before.image)).abs().mean(1).amax())
    if not image <= IMAGE_TOLERANCE:
        raise NotTheSameRun(
            f"{same}: the latent is the same and the image differs by {image:.1f} of 255 levels. "
            "Connect the VAE that it was begun with."
        )
    difference = (now.scores.cpu().double() - before.scores.double()).abs().amax(1)
    for term, off in zip(terms, difference.tolist(), strict=True):
        if not off <= SCORE_TOLERANCE * term.scale:
            raise NotTheSameRun(
                f"{same}: the image is the same and the reward '{term.name}' scores it "
                f"differently by {off:.3g}. Give the reward the model, prompt and settings that "
                "it was begun with."
            )


def _rows(values: Tensor) -> Tensor:
    return values.detach().cpu().double().flatten(1)
