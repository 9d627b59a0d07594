"""Prompts and seeds: development prompts to tune on, test prompts that are run once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from comfyui_dno.demo.training import vocabulary

DEVELOPMENT_THINGS = 16
BATCH = 8


@dataclass(frozen=True)
class Case:
    """One problem: a prompt, and the seed of the picture that its optimization starts from."""

    prompt: str
    seed: int


def development_prompts() -> list[str]:
    return _prompts()[:DEVELOPMENT_THINGS]


def test_prompts() -> list[str]:
    """44 prompts; none names a thing that a development prompt names."""
    return _prompts()[DEVELOPMENT_THINGS:]


def cases(prompts: Sequence[str], count: int, seeds: int) -> list[Case]:
    """The first `count` prompts, seed after seed; no two of them share a seed."""
    everyone = _prompts()
    return [
        Case(prompt, 100 * everyone.index(prompt) + seed)
        for seed in range(seeds)
        for prompt in prompts[:count]
    ]


def batches(found: Sequence[Case], size: int = BATCH) -> list[tuple[Case, ...]]:
    return [tuple(found[first : first + size]) for first in range(0, len(found), size)]


def _prompts() -> list[str]:
    """The 60 listed things in a fixed shuffled order, every second one on a coloured background.

    No style word: the reward model and the judge learnt from different drawing styles.
    """
    shuffle = random.Random(20250711)
    names = [vocabulary.name_of(thing) for thing in vocabulary.LISTED]
    shuffle.shuffle(names)
    colours = list(vocabulary.BACKGROUNDS)
    return [
        f"{name} on {shuffle.choice([c for c in colours if c not in name])}" if index % 2 else name
        for index, name in enumerate(names)
    ]
