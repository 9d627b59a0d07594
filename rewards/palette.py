"""Palette: every pixel near to one of the listed colours, and every listed colour in use."""

from __future__ import annotations

import math
import re
from functools import partial

from torch import Tensor

from .base import Input, PixelReward, Reward, RewardError, Spec
from .lab import Colour, differences, parse_colour
from .masks import average

NAME = "palette"
UNIT = "closeness, 1 (only and all of these colours) down to about 0 (black against white)"
SCALE = 0.122

MOST = 16
FARTHEST = 100.0  # dE from black to white
NEAR, SHARE = 1.0, 10.0  # dE over which a pixel's nearest colours, a colour's nearest pixels blend


def parse_palette(text: str) -> tuple[Colour, ...]:
    """The different colours of "#112233, #445566 ..."; raises RewardError for none or too many."""
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    colours = tuple(dict.fromkeys(parse_colour(word, NAME) for word in words))
    if not colours:
        raise RewardError(
            f"{NAME} has no colours. List some in the colours widget of Reward Loader, "
            "for example #e63946, #f1faee, #1d3557."
        )
    if len(colours) > MOST:
        raise RewardError(f"{NAME} has {len(colours)} colours. List at most {MOST}.")
    return colours


def palette(
    images: Tensor,
    region: Tensor | None,
    colours: tuple[Colour, ...],
    coverage: float,
) -> Tensor:
    """score = 1 - ((1 - coverage) stray + coverage lack) / 100 with, in dE and for K colours c,

    stray = mean over pixels x of min_c dE(x, c), the minimum soft over 1 dE;
    lack  = mean over colours c of -10 log(K mean_x exp(-dE(x, c) / 10)): 0 where the colours have
            equal shares of the picture, 10 log 2 for a share half as large, near the distance of
            the nearest pixels for a colour that is missing.
    """
    distances = differences(images, colours)
    stray = average(-NEAR * (-distances / NEAR).logsumexp(dim=1, keepdim=True), region)
    logs = (-distances / SHARE).flatten(2)
    if region is None:
        shares = logs.logsumexp(dim=2) - math.log(logs.shape[2])
    else:
        weights = region.flatten(2)
        shares = (logs + weights.log()).logsumexp(dim=2) - weights.sum(dim=2).log()
    lack = -SHARE * (shares + math.log(len(colours))).mean(dim=1)
    return 1 - ((1 - coverage) * stray + coverage * lack) / FARTHEST


def create(colours: str, coverage: float) -> Reward:
    score = partial(palette, colours=parse_palette(colours), coverage=coverage)
    return PixelReward(NAME, UNIT, SCALE, score, masked=True)


SPEC = Spec(
    NAME,
    "Palette",
    UNIT,
    "Only the listed colours, and all of them.",
    create,
    inputs=(
        Input(
            "colours",
            "text",
            "#e63946, #f1faee, #457b9d, #1d3557",
            "The colours of the picture as #rrggbb, with commas, spaces or new lines between them; "
            "up to 16, usually 3 to 6. Each pixel moves to the one it is nearest to.",
        ),
        Input(
            "coverage",
            "float",
            0.3,
            "How much it counts that every listed colour appears, against every pixel being one "
            "of them. 0: one of the colours is enough. Raise it when a colour is missing, lower "
            "it when the picture breaks up into patches. Usually 0.1 to 0.5.",
            min=0.0,
            max=1.0,
            step=0.05,
        ),
    ),
)
