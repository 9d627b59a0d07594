"""Which server is asked: the address as it is typed in, taken apart and checked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..base import RewardError

EXAMPLE = "http://127.0.0.1:8080"
_ENDPOINT = "/chat/completions"


@dataclass(frozen=True)
class Address:
    """Of a chat endpoint. text: as it was typed in."""

    host: str
    port: int
    path: str
    secure: bool
    text: str

    @property
    def is_local(self) -> bool:
        """Whether it is this computer by its loopback name or number; no name is looked up."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str, reward: str, allow_remote: bool) -> Address:
    """The chat endpoint at `http(s)://host[:port][/v1[/chat/completions]]`.

    Raises RewardError for an empty or malformed address, one that holds a password or a query, and
    for another computer's unless `allow_remote`.
    """
    text = text.strip()
    if not text:
        raise RewardError(
            f"{reward} is off: it has no server to ask. Start an OpenAI-compatible server with a "
            f"vision model (llama.cpp, Ollama, LM Studio, vLLM), and write its address, such as "
            f"{EXAMPLE}, into address in Reward Loader."
        )
    if "@" in text:
        raise RewardError(
            f"{reward}: the address in Reward Loader holds a user name or a password, which would "
            "be saved with the workflow. Take it out; a key goes into the environment variable "
            "DNO_VLM_API_KEY."
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _malformed(text, reward) from error
    plain = text.isascii() and text.isprintable() and " " not in text
    if not plain or parts.scheme not in ("http", "https") or not host:
        raise _malformed(text, reward)
    if parts.query or parts.fragment:
        raise RewardError(
            f'{reward}: the address "{text}" holds a query (? or #). '
            f"Write only where the server is, for example {EXAMPLE}."
        )
    secure = parts.scheme == "https"
    # Always a number: without one http.client takes the end of an IPv6 address for it.
    port = (443 if secure else 80) if port is None else port
    address = Address(host, port, _path(parts.path), secure, text)
    if not (address.is_local or allow_remote):
        raise RewardError(
            f"{reward}: {host} is another computer, to which every picture would be sent. "
            "Switch allow_remote on in Reward Loader if you want that, or use a server on this one."
        )
    return address


def _path(path: str) -> str:
    path = path.rstrip("/")
    if path.endswith(_ENDPOINT):
        return path
    return (path or "/v1") + _ENDPOINT


def _malformed(text: str, reward: str) -> RewardError:
    return RewardError(
        f'{reward}: "{text}" is not the address of a server. '
        f"Write it as {EXAMPLE} into address in Reward Loader."
    )
