"""HTTP: what the panel reads and asks. ComfyUI's own middleware refuses foreign origins.

No route touches a file, and every body is a small JSON object whose names and ranges are checked.
"""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

from aiohttp import web

from ..comfy_bridge.progress import strip
from . import sessions
from .changes import ChangeError
from .session import Closed, Session

MOST_BYTES = 16 * 1024
QUALITY = 88


class Refused(Exception):
    """Nothing is done: the HTTP status, and the reason in two sentences."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's table; to be called while packs are loaded."""
    for method, path, handler in (
        (routes.get, "/dno/sessions", list_sessions),
        (routes.get, "/dno/sessions/{session}", show_session),
        (routes.get, "/dno/sessions/{session}/frames/{index}", show_frame),
        (routes.post, "/dno/sessions/{session}/control", control_session),
        (routes.post, "/dno/panel", announce_panel),
    ):
        method(path)(_answering(handler))


def _answering(handler: Any) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            result = await handler(request)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        return result if isinstance(result, web.StreamResponse) else web.json_response(result)

    return answer


async def list_sessions(request: web.Request) -> dict[str, Any]:
    client = request.query.get("client", "")
    return {"sessions": [session.entry() for session in sessions.of_client(client)]}


async def show_session(request: web.Request) -> dict[str, Any]:
    return _session(request).state()


async def show_frame(request: web.Request) -> web.Response:
    session, index = _session(request), request.match_info["index"]
    if not index.isdecimal() or len(index) > 9:
        raise Refused(400, "An iteration is a number from 0. Ask for one that has been drawn.")
    data = await asyncio.get_running_loop().run_in_executor(None, _jpeg, session, int(index))
    if data is None:
        raise Refused(404, f"There is no picture of iteration {index} here. Run the node again.")
    headers = {"Cache-Control": "private, max-age=3600"}
    return web.Response(body=data, content_type="image/jpeg", headers=headers)


async def control_session(request: web.Request) -> dict[str, Any]:
    body = await _body(request)
    session = _session(request)
    try:
        return session.control(body)
    except ChangeError as error:
        raise Refused(400, str(error)) from error
    except Closed as error:
        raise Refused(409, str(error)) from error


async def announce_panel(request: web.Request) -> dict[str, Any]:
    body = await _body(request)
    client = body.get("client")
    if set(body) != {"client"} or not isinstance(client, str) or not 0 < len(client) <= 64:
        raise Refused(400, "Give the page's client id, a short text, and nothing else.")
    sessions.add_panel(client)
    return {"client": client}


def _session(request: web.Request) -> Session:
    session = sessions.get(request.match_info["session"])
    if session is None:
        raise Refused(404, "There is no such run on this server. It may have been restarted.")
    return session


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request that is small and says that it is JSON."""
    if request.content_type != "application/json":
        raise Refused(415, "The body must be JSON. Send it as application/json.")
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > MOST_BYTES:
            raise Refused(413, f"The body is larger than {MOST_BYTES} bytes. Send what is asked.")
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is no JSON. Send one object.") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body is no JSON object. Send names and values.")
    return body


def _jpeg(session: Session, index: int) -> bytes | None:
    images = session.frame(index)
    if images is None:
        return None
    file = io.BytesIO()
    strip(images).save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()
