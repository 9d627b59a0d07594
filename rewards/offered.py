"""Rewards of other packs: any loaded package may offer some, without importing this one.

DNO_REWARDS = [dict(name="redness", label="Redness", unit="mean red, 0 to 1", summary="More red.",
                    scale=0.1, score=lambda images: images[:, 0].mean(dim=(1, 2)))]

docs/writing-rewards.md tells the whole of it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Spec
from .declared import Invalid, read_spec

log = logging.getLogger("dno")

VARIABLE = "DNO_REWARDS"

_known: dict[int, tuple[Any, Spec | None]] = {}


def offered(taken: Container[str] = ()) -> dict[str, Spec]:
    """The rewards that loaded modules offer now, by name, in the order the modules were loaded.

    An entry that cannot be used, or whose name is taken, is named in the log, once, and left out.
    """
    found: dict[str, Spec] = {}
    for pack, entry in _entries():
        if id(entry) not in _known or _known[id(entry)][0] is not entry:
            _known[id(entry)] = (entry, _spec_or_warning(pack, entry))
        spec = _known[id(entry)][1]
        if spec is None:
            continue
        if spec.name in taken or spec.name in found:
            message = 'The reward "%s" of the pack %s is left out: its name is taken.'
            _warn_once(spec, message, spec.name, pack)
        else:
            found[spec.name] = spec
    return found


def _entries() -> Iterator[tuple[str, Any]]:
    """(pack, entry) of every DNO_REWARDS; a list seen from two modules counts once."""
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        # Not getattr: some libraries import the rest of themselves when they are asked for a name.
        offers = getattr(module, "__dict__", {}).get(VARIABLE)
        if offers is None or id(offers) in seen:
            continue
        seen.add(id(offers))
        pack = _pack_name(name, module)
        if isinstance(offers, (str, Mapping)) or not isinstance(offers, Sequence):
            _warn_once(offers, "%s: %s is left out. Make it a list of dicts.", pack, VARIABLE)
            continue
        for entry in offers:
            yield pack, entry


def _pack_name(name: str, module: Any) -> str:
    file = Path(getattr(module, "__file__", None) or name)
    return file.parent.name if file.name == "__init__.py" else name


def _warn_once(thing: Any, message: str, *details: str) -> None:
    if _known.get(id(thing), (None,))[0] is not thing:
        _known[id(thing)] = (thing, None)
        log.warning(message, *details)


def _spec_or_warning(pack: str, entry: Any) -> Spec | None:
    try:
        return read_spec(entry, pack)
    except Invalid as error:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        what = f'The reward "{name}"' if isinstance(name, str) and name else "A reward"
        log.warning("%s of the pack %s is left out: %s", what, pack, error)
    except Exception:  # whatever another pack wrote, the rewards of all others stay
        log.exception("A reward of the pack %s is left out: it cannot be read.", pack)
    return None
