"""What an artist changes by hand while a run goes on, so that the run can be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ...dno_core import Settings, TermInfo

Keep = Literal["best", "current"]

LIMITS = {"learning_rate": (0.0, 10.0), "gamma": (0.0, 1000.0), "weight": (0.0, 1000.0)}
"""Lowest and highest value of what can be changed; the widgets' own."""


class ChangeError(ValueError):
    """A change that cannot be made: what is wrong with it and what would be right."""


@dataclass(frozen=True)
class Change:
    """Made once iteration `after` was there; its values hold from the iteration that follows.

    None leaves a value as it is. `learning_rate` is the one that warm-up and decay start from.
    `weights` are those of all terms. `stop` ends the run, with that iteration's picture or the
    best.
    """

    after: int
    learning_rate: float | None = None
    gamma: float | None = None
    weights: tuple[float, ...] | None = None
    stop: Keep | None = None

    def as_dict(self) -> dict[str, Any]:
        """Its values that are not None, as JSON takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def settings_with(base: Settings, changes: Sequence[Change], index: int) -> Settings:
    """The settings of iteration `index` once the changes made before it are applied in order."""
    for change in changes:
        if change.after < index:
            values = change.as_dict()
            held = {name: values[name] for name in values.keys() - {"after", "stop"}}
            base = replace(base, **held)
    return base


def checked(values: Mapping[str, Any], after: int, terms: Sequence[TermInfo]) -> Change:
    """The change that JSON values ask for. Raises ChangeError for anything else than asked."""
    known = {"learning_rate", "gamma", "weights", "stop"}
    unknown = sorted(str(name) for name in values.keys() - known)
    if unknown:
        raise ChangeError(f"There is no {unknown[0]!r} to change. Known: {sorted(known)}.")
    numbers = {
        name: _number(values[name], name, LIMITS[name])
        for name in ("learning_rate", "gamma")
        if name in values
    }
    stop = values.get("stop")
    if stop is not None and stop not in get_args(Keep):
        raise ChangeError(f"stop is {stop!r:.40}. Use one of {get_args(Keep)}.")
    weights = _weights(values["weights"], terms) if "weights" in values else None
    return Change(after, weights=weights, stop=stop, **numbers)


def _weights(values: Any, terms: Sequence[TermInfo]) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != len(terms):
        raise ChangeError(f"weights must be a list of {len(terms)} numbers, one for every term.")
    weights = tuple(_number(value, "a weight", LIMITS["weight"]) for value in values)
    for weight, term in zip(weights, terms, strict=True):
        if weight and (term.watch or not term.weight):
            raise ChangeError(
                f"{term.name} is only watched in this run, so it has no weight to change. Begin "
                "the run with watch_only off and a weight above 0."
            )
    if not any(weights):
        raise ChangeError("With all weights 0 no picture is the best. Leave one of them above 0.")
    return weights


def _number(value: Any, name: str, limits: tuple[float, float]) -> float:
    low, high = limits
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        raise ChangeError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def write_changes(changes: Sequence[Change]) -> str:
    """As the sampler's widget `changes` holds them: JSON, "" for none."""
    return json.dumps([change.as_dict() for change in changes]) if changes else ""


def read_changes(text: str, terms: Sequence[TermInfo]) -> tuple[Change, ...]:
    """What `write_changes` wrote, in order of iterations. Raises ChangeError, naming the widget."""
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)
        found = []
        for entry in entries:
            values = dict(entry)
            after = values.pop("after")
            if isinstance(after, bool) or not isinstance(after, int) or after < 0:
                raise ChangeError("after must be the number of an iteration.")
            found.append(checked(values, after, terms))
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, ChangeError) else "they are no changes of a run."
        raise ChangeError(
            f"The widget changes of DNO Sampler cannot be followed: {reason} Empty it, or paste "
            "what an earlier run recorded."
        ) from error
    return tuple(sorted(found, key=lambda change: change.after))
