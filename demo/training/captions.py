"""Captions: what a prompt for a composed picture may say."""

from __future__ import annotations

import random

from vocabulary import BACKGROUNDS, HUES, STYLES, THINGS

FILLERS = ("", "", "", "", "a ", "the ", "cute ", "a picture of a ", "a drawing of a ")
FORMS = (
    ("{np}", 5),
    ("{np} on {bg}", 5),
    ("{np}, {style} style", 3),
    ("{np}, {style} style, on {bg}", 3),
    ("{np} on {bg}, {style} style", 2),
    ("{np} on a {bg} background", 2),
    ("{np}, {bg} background", 2),
    ("{np} on a {bg} background, {style} style", 1),
    ("{style} {np}", 1),
    ("{style} {np} on {bg}", 1),
)
EXTRA = (
    "emoji icon picture image photo painting illustration of in with and at by sitting standing "
    "bright dark happy sad small big simple colorful beautiful detailed high quality best "
    "masterpiece low bad ugly blurry noise night day sky grass water teal cyan magenta gold silver "
    "orange fruit animal food flower plant vehicle"
)
"""Words beyond the captions that the tokenizer keeps whole."""


def noun_phrase(rng: random.Random, slug: str, colour: str, turned: bool) -> str:
    """A name of the thing, with its colour word always if turned, else sometimes."""
    names = THINGS[slug]
    name = names[0] if len(names) == 1 or rng.random() < 0.7 else rng.choice(names[1:])
    if turned:
        return f"{colour} {plain(name)}"
    if colour and rng.random() < 0.2 and name.split()[0] not in COLOUR_WORDS:
        return f"{colour} {name}"
    return name


COLOUR_WORDS = frozenset(HUES) | frozenset(word for word in BACKGROUNDS)


def plain(name: str) -> str:
    """A name without its own colour word: "red apple" -> "apple"."""
    first, _, rest = name.partition(" ")
    return rest if first in COLOUR_WORDS and rest != "fruit" else name


def caption(
    rng: random.Random, slug: str, style: str, colour: str, turned: bool, background: str
) -> str:
    """One caption in one of the FORMS."""
    form = rng.choices([f for f, _ in FORMS], [w for _, w in FORMS])[0]
    phrase = noun_phrase(rng, slug, colour, turned)
    if not form.startswith("{style}"):
        filler = rng.choice(FILLERS)
        phrase = filler + phrase
    return form.format(np=phrase, style=style, bg=background)


def every_text() -> list[str]:
    """Texts that hold every word of the captions, for the tokenizer."""
    words = [n for names in THINGS.values() for n in names]
    words += [*BACKGROUNDS, *HUES, *STYLES.values(), *FILLERS, EXTRA]
    return words + [form.format(np="x", style="flat", bg="blue") for form, _ in FORMS]
