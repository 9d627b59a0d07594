"""All sessions of this server: those that run, and the last few that have ended."""

from __future__ import annotations

import threading
from collections import deque

from .session import Session

ENDED_KEPT = 8
PANELS_KEPT = 64

_lock = threading.Lock()
_sessions: dict[str, Session] = {}
_panels: deque[str] = deque(maxlen=PANELS_KEPT)


def add(session: Session) -> None:
    """Make a session known; the oldest ended ones go."""
    with _lock:
        _sessions[session.id] = session
        ended = [each.id for each in _sessions.values() if not each.is_open]
        for name in ended[: max(len(ended) - ENDED_KEPT, 0)]:
            del _sessions[name]


def get(name: str) -> Session | None:
    with _lock:
        return _sessions.get(name)


def of_client(client: str) -> list[Session]:
    """The sessions of prompts that this client queued, oldest first."""
    with _lock:
        return [session for session in _sessions.values() if session.client == client]


def add_panel(client: str) -> None:
    """Remember that this client shows panels, and so needs no other preview."""
    with _lock:
        if client not in _panels:
            _panels.append(client)


def has_panel(client: str | None) -> bool:
    with _lock:
        return client in _panels
