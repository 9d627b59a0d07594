"""A session from a run's first moment to its last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management

from ...dno_core import Recorder, Settings, TermInfo
from ..comfy_bridge.progress import prompt_server
from ..request import Request
from . import sessions
from .changes import Change, read_changes
from .session import Session


@contextmanager
def open_session(
    request: Request, settings: Settings, terms: Sequence[TermInfo], recorder: Recorder
) -> Iterator[Session]:
    """The session of a run. It ends with the run, whichever way that ends."""
    server = prompt_server()
    client = getattr(server, "client_id", None)

    def send(event: str, data: dict[str, object]) -> None:
        if server is not None and client is not None:
            server.send_sync(event, data, client)

    session = Session(
        request.node_id,
        getattr(server, "last_prompt_id", None),
        client,
        terms,
        request.iterations,
        settings,
        send,
        changes_to_repeat(request, terms),
        request.workflow,
    )
    sessions.add(session)
    try:
        session.begin(recorder.images, recorder.records)
        yield session
    except comfy.model_management.InterruptProcessingException:
        session.close("cancelled", "Cancelled.")
        raise
    except BaseException as error:
        session.close("failed", str(error).strip().split("\n")[0] or type(error).__name__)
        raise


def changes_to_repeat(request: Request, terms: Sequence[TermInfo]) -> tuple[Change, ...]:
    """What the widget `changes` holds; where a resumed run was once stopped, it now goes on."""
    done = request.resume.last if request.resume is not None else -1
    changes = read_changes(request.changes, terms)
    return tuple(replace(each, stop=None) if each.after <= done else each for each in changes)


def has_panel() -> bool:
    """Whether the client that queued the prompt shows panels."""
    return sessions.has_panel(getattr(prompt_server(), "client_id", None))
