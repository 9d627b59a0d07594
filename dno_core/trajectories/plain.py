"""Dataclasses of numbers as JSON and back: exact, and checked field by field."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""JSON has no such numbers: they are written as {"float": "inf"}."""


class Unfit(ValueError):
    """Data that is not what the dataclass says; the message names the place."""


def to_json(value: Any) -> bytes:
    """Dataclasses, tuples, lists, string-keyed dicts and scalars as JSON text.

    A float is written with as many digits as it takes to get the same double back. Raises
    TypeError for anything else.
    """
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":")).encode("utf-8")


def from_json(kind: Any, text: bytes) -> Any:
    """The `kind` (a dataclass, say) that was written. Raises Unfit; nothing is ever executed."""
    try:
        data = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
        return _built(kind, data, "run")
    except (ValueError, RecursionError) as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit(f"its JSON cannot be read ({type(error).__name__})") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in _fields(type(value))}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"A {type(value).__name__} cannot be written as JSON. Give plain numbers.")


def _built(kind: Any, data: Any, where: str) -> Any:
    data = _number(data)
    if kind is Any:
        return _anything(data)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        (kept,) = [option for option in inner if option is not type(None)]
        return _built(kept, data, where)
    if origin is Literal and data in inner:
        return data
    if origin is tuple and isinstance(data, list):
        return tuple(_built(inner[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: _anything(item) for key, item in data.items()}
    if kind is float and (type(data) is float or type(data) is int and abs(data) <= 2**53):
        return float(data)
    if kind in (int, str, bool) and type(data) is kind:
        return data
    raise Unfit(f"{where} is {_shown(data)}")


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise Unfit(f"{where} is {_shown(data)}")
    hints = _hints(kind)
    if unknown := sorted(set(data) - set(hints)):
        raise Unfit(f"{where} has '{unknown[0]}', which only a newer version of the pack knows")
    values = {}
    for field in _fields(kind):
        if field.name in data:
            place = f"{where}.{field.name}"
            values[field.name] = _built(hints[field.name], data[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Unfit(f"{where} has no '{field.name}'")
    return kind(**values)


def _number(data: Any) -> Any:
    if isinstance(data, dict) and set(data) == {"float"} and isinstance(data["float"], str):
        return NON_FINITE.get(data["float"], data)
    return data


def _anything(data: Any) -> Any:
    data = _number(data)
    if isinstance(data, list):
        return [_anything(item) for item in data]
    if isinstance(data, dict):
        return {key: _anything(item) for key, item in data.items()}
    return data


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:40]}..."


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _fields(kind: Any) -> tuple[Any, ...]:
    return dataclasses.fields(kind)
