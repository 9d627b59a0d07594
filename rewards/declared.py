"""A reward as another pack writes it down, a dict of plain values, read into a Spec."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .base import Input, PixelReward, Reward, RewardError, Spec
from .files.places import places
from .files.source import RemoteFile, Source

FLAGS = {"differentiable": True, "masked": False}
"""Of a reward that is one function, as PixelReward has them."""

RESERVED = ("reward", "prompt", "reference")
SPEC_FIELDS = {field.name for field in fields(Spec)}
INPUT_FIELDS = {field.name for field in fields(Input)}


class Invalid(ValueError):
    """An entry that cannot be used: names the field and says what is wrong with it."""


def read_spec(entry: Any, pack: str) -> Spec:
    """A Spec from a dict with its fields; `score` and `scale` may stand in place of `create`.

    Raises Invalid.
    """
    if not isinstance(entry, Mapping):
        raise Invalid(f"it is {type(entry).__name__}, not a dict.")
    entry = dict(entry)
    for field in ("name", "label", "unit", "summary"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise Invalid(f"{field} is missing or no text.")
    if not entry["name"].isidentifier():
        raise Invalid("name may hold letters, digits and underscores only.")
    inputs = entry.get("inputs", ())
    if isinstance(inputs, (str, Mapping)) or not isinstance(inputs, Sequence):
        raise Invalid("inputs is not a list of dicts.")
    entry["inputs"] = tuple(read_input(item) for item in inputs)
    names = [item.name for item in entry["inputs"]]
    if len(set(names)) < len(names):
        raise Invalid("two inputs have the same name.")
    entry["create"] = _checked_create(_create(entry), pack, entry["name"])
    own = {"score", "scale", *FLAGS}
    unknown = sorted(entry.keys() - SPEC_FIELDS - own, key=str)
    if unknown:
        raise Invalid(f"there is no field {unknown[0]}.")
    for field in ("prompt", "reference", "scale_source", "licence"):
        if not isinstance(entry.get(field, ""), str):
            raise Invalid(f"{field} is no text.")
    if not isinstance(entry.get("needs_prompt", True), bool):
        raise Invalid("needs_prompt is neither True nor False.")
    entry.setdefault("scale_source", f"the pack {pack}")
    try:
        return Spec(**{field: value for field, value in entry.items() if field not in own})
    except ValueError as error:
        raise Invalid(str(error)) from error


def _create(entry: Mapping[str, Any]) -> Callable[..., Reward]:
    create, score = entry.get("create"), entry.get("score")
    if (create is None) == (score is None):
        raise Invalid("it needs either create or score.")
    if create is not None:
        if not callable(create):
            raise Invalid("create is no function.")
        return create  # type: ignore[no-any-return]
    if not callable(score):
        raise Invalid("score is no function.")
    if entry["inputs"]:
        raise Invalid("score takes no inputs; give create, which does.")
    flags = {name: entry.get(name, default) for name, default in FLAGS.items()}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise Invalid(f"{name} is neither True nor False.")
    scale = _scale(entry.get("scale"))
    reward = PixelReward(entry["name"], entry["unit"], scale, score, **flags)
    return lambda: reward


def _scale(scale: Any) -> float:
    if not _is_number(scale) or not 0 < scale <= sys.float_info.max:
        raise Invalid("scale is not a number above 0.")
    return float(scale)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked_create(create: Callable[..., Reward], pack: str, name: str) -> Callable[..., Reward]:
    def checked(**inputs: Any) -> Reward:
        reward = create(**inputs)
        try:
            require_reward(reward)
        except Invalid as error:
            raise RewardError(
                f"{name}: create of the pack {pack} made no reward: {error} Tell its author."
            ) from error
        return reward

    return checked


def require_reward(reward: Any) -> None:
    """Raise Invalid unless it has all that `Reward` asks for."""
    for field in ("name", "unit"):
        if not isinstance(getattr(reward, field, None), str):
            raise Invalid(f"{field} is missing or no text.")
    _scale(getattr(reward, "scale", None))
    if not isinstance(getattr(reward, "differentiable", None), bool):
        raise Invalid("differentiable is neither True nor False.")
    modules = getattr(reward, "modules", None)
    if not isinstance(modules, tuple) or not all(isinstance(m, torch.nn.Module) for m in modules):
        raise Invalid("modules is not a tuple of torch modules.")
    if not callable(getattr(reward, "score", None)):
        raise Invalid("score is missing.")


def read_input(item: Any) -> Input:
    """An Input from a dict with its fields. Raises Invalid."""
    if isinstance(item, Mapping):
        unknown = sorted(item.keys() - INPUT_FIELDS, key=str)
        if unknown:
            raise Invalid(f"an input has no field {unknown[0]}.")
        missing = [field for field in ("name", "kind", "tooltip") if not item.get(field)]
        if missing:
            raise Invalid(f"{missing[0]} of an input is missing.")
        values = dict(item)
        for field in ("choices", "suffixes"):
            values[field] = _texts(values.get(field, ()), f"{field} of an input")
        values["sources"] = tuple(
            _source(source) for source in _listed(values.get("sources", ()), "sources of an input")
        )
        values.setdefault("default", None)
        item = Input(**values)
    if not isinstance(item, Input):
        raise Invalid("an input is no dict.")
    _require_sound(item)
    return item


_TYPES: dict[str, tuple[type, ...]] = {
    "float": (int, float),
    "int": (int,),
    "bool": (bool,),
    "string": (str,),
    "text": (str,),
    "choice": (str,),
    "colour": (str,),
    "model": (str,),
    "precision": (str,),
    "clip_vision": (type(None),),
}


def _require_sound(item: Input) -> None:
    if not isinstance(item.name, str) or not item.name.isidentifier() or item.name in RESERVED:
        raise Invalid(f"an input cannot be named {item.name!r}.")
    if not isinstance(item.kind, str) or item.kind not in _TYPES:
        raise Invalid(f"the kind of {item.name} is none of {', '.join(_TYPES)}.")
    if not isinstance(item.tooltip, str):
        raise Invalid(f"the tooltip of {item.name} is no text.")
    for field in ("advanced", "folders"):
        if not isinstance(getattr(item, field), bool):
            raise Invalid(f"{field} of {item.name} is neither True nor False.")
    for field in ("min", "max", "step"):
        if not (getattr(item, field) is None or _is_number(getattr(item, field))):
            raise Invalid(f"{field} of {item.name} is no number.")
    if not all(suffix.startswith(".") and suffix == suffix.lower() for suffix in item.suffixes):
        raise Invalid(f"the suffixes of {item.name} are not like .pt, in lower case.")
    default = item.default
    fits = isinstance(default, _TYPES[item.kind])
    if not fits or (isinstance(default, bool) and item.kind != "bool"):
        raise Invalid(f"the default of {item.name} does not fit its kind.")
    if item.kind == "choice" and default not in item.choices:
        raise Invalid(f"the default of {item.name} is not among its choices.")
    if item.kind in ("float", "int"):
        low = -math.inf if item.min is None else item.min
        high = math.inf if item.max is None else item.max
        if not low <= default <= high:
            raise Invalid(f"the default of {item.name} is outside its range.")


def _source(source: Any) -> Source:
    if isinstance(source, Mapping):
        try:
            files = tuple(
                RemoteFile(**file) if isinstance(file, Mapping) else file
                for file in source["files"]
            )
            source = Source(**{**source, "files": files})
        except (KeyError, TypeError) as error:
            raise Invalid(f"a source cannot be read: {error}.") from error
    if not isinstance(source, Source):
        raise Invalid("a source is no dict.")
    _texts((source.name, source.licence, source.page), "name, licence and page of a source")
    for file in source.files:
        if not isinstance(file, RemoteFile):
            raise Invalid(f"a file of the source {source.name} is no dict.")
        _texts((file.url, file.name, file.sha256), f"url, name and sha256 of {source.name}")
        if not isinstance(file.size, int) or file.size < 0:
            raise Invalid(f"the size of a file of {source.name} is no number of bytes.")
    try:
        if source.files:
            places(source, Path())
    except RewardError as error:
        raise Invalid(str(error)) from error
    return source


def _listed(values: Any, what: str) -> Sequence[Any]:
    if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
        raise Invalid(f"{what}: not a list.")
    return values


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in _listed(values, what)):
        raise Invalid(f"{what}: not all are texts.")
    return tuple(values)
