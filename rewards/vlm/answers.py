"""What an answer is worth: the number in it, or how sure the model is of yes."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Place(NamedTuple):
    """token: what the model said there. likeliest: what it could have, with log-probabilities."""

    token: str
    likeliest: tuple[tuple[str, float], ...]


class Answer(NamedTuple):
    """text: what the model said. cut: whether it ran out of tokens. places: its tokens, where the
    server tells their probabilities.
    """

    text: str
    cut: bool = False
    places: tuple[Place, ...] = ()


class Unreadable(ValueError):
    """The answer is not of the form that was asked for; says why."""


MOST_READ = 2000
"""Characters of an answer that are looked at."""

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)?(?!\w)")
_LABEL = re.compile(r"[^\w+-]*(?:[a-z]+[^\w+-]*[:=][^\w+-]*)?", re.IGNORECASE)
_OUT_OF = re.compile(r"(?:/|\bout of) *[\d.,]+", re.IGNORECASE)
_YES_OR_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


def said(answer: Answer) -> str:
    """The answer without the thoughts that some models put before it."""
    return _THOUGHTS.sub("", answer.text).strip()


def number(answer: Answer, lowest: float, highest: float) -> float:
    """The number that the answer starts with ("8/10", "Score: 8"), or the only one in it.

    Raises Unreadable where there is none, several to choose from, or one out of range.
    """
    text = said(answer)[:MOST_READ]
    label = _LABEL.match(text)
    first = _NUMBER.match(text, label.end() if label else 0)
    if first is None:
        found = list(_NUMBER.finditer(_OUT_OF.sub("", text)))
        if len(found) != 1:
            raise Unreadable(f"there is {'more than one' if found else 'no'} number in it")
        first = found[0]
    value = float(first[0].replace(",", "."))
    if not lowest <= value <= highest:
        raise Unreadable(f"{value:g} is not between {lowest:g} and {highest:g}")
    return value


def yes(answer: Answer) -> float:
    """P(yes) / (P(yes) + P(no)) where the model said one; 1 or 0 where probabilities are not told.

    Raises Unreadable where the text says neither, or both without starting with one.
    """
    text = said(answer)[:MOST_READ]
    words = [match[0].lower() for match in _YES_OR_NO.finditer(text)]
    if not words:
        raise Unreadable("it says neither yes nor no")
    if len(set(words)) > 1 and not re.match(r"\W*(?:yes|no)\b", text, re.IGNORECASE):
        raise Unreadable("it says both yes and no")
    # Thoughts come before the answer and may say the word too.
    spoken = [place for place in answer.places if _word(place.token) == words[0]]
    if spoken:
        return _share_of_yes(spoken[-1 if "<think>" in answer.text else 0])
    return float(words[0] == "yes")


def _share_of_yes(place: Place) -> float:
    mass = {"yes": 0.0, "no": 0.0}
    for token, log_probability in place.likeliest:
        if _word(token) in mass:
            mass[_word(token)] += math.exp(min(log_probability, 0.0))
    total = mass["yes"] + mass["no"]
    return mass["yes"] / total if total > 0 else float(_word(place.token) == "yes")


def _word(token: str) -> str:
    """A token without the space or punctuation around it, which tokenizers write in many ways."""
    return re.sub(r"[^a-z]", "", token.lower())
