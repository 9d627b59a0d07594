"""One HTTP answer, read by a thread of its own so that waiting for it can be interrupted."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..heartbeat import heartbeat

_CHUNK = 1 << 16
_QUEUED = 64
_REDIRECTS = 10
_BEAT = 0.1


@dataclass(frozen=True)
class Patience:
    """How long a download waits. connect, stall: seconds to the connection, and without a byte.

    retries: further tries in a row that bring nothing new. pause: seconds before the first of
    them; doubled each time.
    """

    connect: float = 15.0
    stall: float = 30.0
    retries: int = 4
    pause: float = 1.0


class Passing(Exception):
    """A failure that may pass: worth another try after `wait` seconds at least."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Refused(Exception):
    """A failure that another try will not mend."""


@dataclass(frozen=True)
class Answer:
    """headers: of the last answer, names in lower case. linked: the X-Linked-ETag on the way."""

    status: int
    headers: dict[str, str]
    linked: str


class Stream:
    """GET a URL; `answer` once, then `chunks`. Both call heartbeat() ten times a second.

    Redirects are followed, except from https to anything else. Use as a context manager.
    """

    def __init__(self, url: str, headers: dict[str, str], patience: Patience) -> None:
        self._patience = patience
        self._items: queue.Queue[object] = queue.Queue(_QUEUED)
        self._closed = threading.Event()
        threading.Thread(target=self._read, args=(url, headers), daemon=True).start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def answer(self) -> Answer:
        """Wait for the answer. Raises Passing or Refused."""
        item = self._next(self._patience.connect + self._patience.stall)
        assert isinstance(item, Answer)
        return item

    def chunks(self) -> Iterator[bytes]:
        """The body. Raises Passing when it stalls or is cut off."""
        while isinstance(chunk := self._next(self._patience.stall), bytes):
            yield chunk

    def _next(self, limit: float) -> object:
        end = time.monotonic() + limit
        while True:
            heartbeat()
            try:
                item = self._items.get(timeout=_BEAT)
            except queue.Empty:
                if time.monotonic() > end:
                    raise Passing(f"nothing came for {limit:g} s") from None
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def _read(self, url: str, headers: dict[str, str]) -> None:
        import requests
        import urllib3

        try:
            with requests.Session() as session:
                response, linked = _open(session, url, headers, self._patience)
                with response:
                    names = {name.lower(): value for name, value in response.headers.items()}
                    self._put(Answer(response.status_code, names, linked))
                    for chunk in _body(response.raw):
                        if not self._put(chunk):
                            return
            self._put(None)
        except (Refused, Passing) as error:
            self._put(error)
        except requests.exceptions.SSLError as error:
            self._put(Refused(f"the secure connection failed ({_reason(error)})"))
        except _invalid() as error:
            self._put(Refused(f"the address is not valid ({_reason(error)})"))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self._put(Passing(_reason(error)))
        except ValueError as error:  # of urlsplit
            self._put(Refused(f"the address is not valid ({_reason(error)})"))
        except Exception as error:
            self._put(error)

    def _put(self, item: object) -> bool:
        """Hand over an item; False when nobody waits for it any more."""
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=_BEAT)
                return True
            except queue.Full:
                continue
        return False


def pause(seconds: float) -> None:
    """Sleep, with a heartbeat ten times a second."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        heartbeat()
        time.sleep(min(_BEAT, left))


def _open(session: Any, url: str, headers: dict[str, str], patience: Patience) -> tuple[Any, str]:
    linked = ""
    for _ in range(_REDIRECTS):
        response = session.get(
            url,
            headers=headers,
            stream=True,
            allow_redirects=False,
            timeout=(patience.connect, patience.stall),
            auth=_no_credentials,
        )
        linked = linked or response.headers.get("X-Linked-Etag", "")
        if not response.is_redirect:
            return response, linked
        target = urljoin(url, response.headers["Location"])
        response.close()
        if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
            raise Refused(f"it was redirected to an unprotected address ({target})")
        url = target
    raise Refused("it was redirected in circles")


def _invalid() -> tuple[type[Exception], ...]:
    from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema
    from urllib3.exceptions import LocationValueError

    return InvalidSchema, InvalidURL, MissingSchema, LocationValueError


def _body(raw: Any) -> Iterator[bytes]:
    """The bytes as they come, so that a cut or a slow line loses none of them."""
    read = getattr(raw, "read1", raw.read)  # urllib3 1.26 has no read1
    while chunk := read(_CHUNK, decode_content=True):
        yield chunk


def _no_credentials(request: Any) -> Any:
    """In place of what requests would read from .netrc."""
    return request


def _reason(error: Exception) -> str:
    import requests
    import urllib3

    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "nothing came in time"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "no connection; is the network there, and a proxy set if one is needed?"
    return (str(error).partition("\n")[0] or type(error).__name__)[:160]
