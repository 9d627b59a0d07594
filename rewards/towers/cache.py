"""A model is loaded once and kept while a reward uses it; two that no reward uses stay as well."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

Model = TypeVar("Model")

_alive: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
_recent: deque[Any] = deque(maxlen=2)  # a changed widget must not load the model again


def stamps(files: Iterable[Path]) -> tuple[object, ...]:
    """What changes when one of the files does: their paths, times and sizes."""
    found: list[object] = []
    for file in files:
        state = file.stat()
        found += [str(file), state.st_mtime_ns, state.st_size]
    return tuple(found)


def kept(key: tuple[object, ...]) -> Any:
    """The loaded model of that key, or None."""
    model = _alive.get(key)
    if model is not None:
        _remember(model)
    return model


def once(key: tuple[object, ...], load: Callable[[], Model]) -> Model:
    """The model of that key; `load` is called only when it is not in memory."""
    model: Model | None = kept(key)
    if model is None:
        model = _alive[key] = load()
        _remember(model)
    return model


def forget() -> None:
    """Free the memory of models that no reward uses."""
    _recent.clear()


def _remember(model: Any) -> None:
    if not any(model is other for other in _recent):
        _recent.append(model)
