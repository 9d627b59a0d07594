"""A chat model that looks at a picture, as OpenAI-compatible servers offer it."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import math
import os
import re
import ssl
from dataclasses import dataclass, field
from typing import Any

from ..base import RewardError, RewardUnavailable
from .address import Address
from .answers import Answer, Place
from .exchange import MOST_BYTES, Reply, TooLarge, exchange, rest

log = logging.getLogger("dno")

KEY, KEY_HOST = "DNO_VLM_API_KEY", "DNO_VLM_API_HOST"
QUOTED = 200
FIRST_REST = 0.5
"""Seconds before the first retry; doubled for each one after it."""
ALTERNATIVES = 20
"""As many as the OpenAI interface allows."""

_SEED = 0


@dataclass
class Endpoint:
    """Asks one question about one picture at a time; repeatable (temperature 0, fixed seed).

    timeout: seconds for a whole answer. retries: after time-outs, lost connections and errors of
    the server's own. tokens: the longest answer.
    """

    address: Address
    model: str
    reward: str
    timeout: float
    retries: int
    tokens: int
    _tells_probabilities: bool = field(default=True, init=False)

    def ask(self, png: bytes, question: str, probabilities: bool = False) -> Answer:
        """The model's answer. Raises RewardUnavailable; what `heartbeat` raises goes through."""
        asked = probabilities and self._tells_probabilities
        reply = self._persist(self._body(png, question, asked))
        if asked and reply.status in (400, 422):
            # Some servers refuse to be asked for probabilities.
            reply = self._persist(self._body(png, question, False))
            self._tells_probabilities = reply.status != 200
        if reply.status != 200:
            raise self._refused(reply)
        return self._read(reply)

    def _body(self, png: bytes, question: str, probabilities: bool) -> bytes:
        url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        content = [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": _SEED,
            "max_tokens": self.tokens,
            "stream": False,
        }
        if self.model:
            body["model"] = self.model
        if probabilities:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return json.dumps(body).encode("ascii")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(KEY, "").strip()
        # A workflow names the address, and it may be a stranger's: the key has hosts of its own.
        if key and (self.address.is_local or self.address.host == _key_host()):
            if not (key.isascii() and key.isprintable()):
                raise RewardError(
                    f"{self.reward}: the environment variable {KEY} holds characters that a key "
                    "cannot have. Set it anew and start ComfyUI again."
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _persist(self, body: bytes) -> Reply:
        """The reply of the last try; server errors and lost connections are tried again."""
        headers = self._headers()
        for left in range(self.retries, -1, -1):
            try:
                reply = exchange(self.address, body, headers, self.timeout)
            except (OSError, http.client.HTTPException, TooLarge, UnicodeError) as error:
                failure = self._failed(error)
                lasting = isinstance(error, (TooLarge, ssl.SSLCertVerificationError, UnicodeError))
                if lasting or not left:
                    raise failure from error
                log.info("%s Asked again.", failure)
            else:
                if not left or not (reply.status == 429 or reply.status >= 500):
                    return reply
                log.info("%s Asked again.", self._refused(reply))
            rest(FIRST_REST * 2 ** (self.retries - left))
        raise AssertionError("unreachable")

    def _failed(self, error: Exception) -> RewardUnavailable:
        where = self.address.text
        if isinstance(error, TimeoutError):
            return RewardUnavailable(
                f"{self.reward}: {where} gave no whole answer within {self.timeout:g} s. "
                "See whether the server is stuck, or raise timeout in Reward Loader."
            )
        if isinstance(error, ConnectionRefusedError):
            return RewardUnavailable(
                f"{self.reward}: no server listens at {where}. "
                "Start it, or correct address in Reward Loader."
            )
        if isinstance(error, TooLarge):
            return RewardUnavailable(
                f"{self.reward}: {where} sent more than {MOST_BYTES // 2**20} MB as its answer. "
                "Check that a chat model listens at this address."
            )
        reason = quote(str(error)) or type(error).__name__
        return RewardUnavailable(
            f"{self.reward}: the connection to {where} failed ({reason}). "
            "Check the server and address in Reward Loader."
        )

    def _refused(self, reply: Reply) -> RewardUnavailable:
        where = f"{self.reward}: {self.address.text} answered with HTTP {reply.status}"
        if 300 <= reply.status < 400:
            return RewardUnavailable(
                f'{where}, which sends on to "{quote(reply.location)}". '
                "That is not followed; write the final address into Reward Loader."
            )
        said = _error_text(reply.body)
        where += f' ("{said}"). ' if said else ". "
        if reply.status in (401, 403):
            return RewardUnavailable(
                f"{where}Set the environment variable {KEY} to the server's key (for another "
                f"computer also {KEY_HOST} to its name) and start ComfyUI again."
            )
        if reply.status == 404:
            return RewardUnavailable(f"{where}Check address and model in Reward Loader.")
        if reply.status >= 500:
            return RewardUnavailable(
                f"{where}See the server's own log; its model must be one that reads pictures."
            )
        return RewardUnavailable(f"{where}Check model in Reward Loader and the server's settings.")

    def _read(self, reply: Reply) -> Answer:
        try:
            choice = json.loads(reply.body)["choices"][0]
            content = choice["message"].get("content")
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            if not isinstance(content, (str, type(None))):
                raise TypeError("content is no text")
            cut = choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RewardUnavailable(
                f"{self.reward}: {self.address.text} did not answer as a chat server does, but: "
                f'"{quote(reply.body)}". Write the address of an OpenAI-compatible server into '
                "Reward Loader."
            ) from error
        return Answer(content or "", cut, _places(choice.get("logprobs")))


def _places(found: Any) -> tuple[Place, ...]:
    """The tokens with their alternatives; none where they are not as the interface has them."""
    try:
        places = tuple(Place(str(each["token"]), _likeliest(each)) for each in found["content"])
    except (TypeError, LookupError, ValueError):
        return ()
    broken = any(math.isnan(value) for place in places for _, value in place.likeliest)
    return () if broken else places


def _likeliest(place: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(each["token"]), float(each["logprob"])) for each in place["top_logprobs"])


def _key_host() -> str:
    return os.environ.get(KEY_HOST, "").strip().lower()


def _error_text(body: bytes) -> str:
    """What the server says went wrong: {"error": {"message": ...}}, {"error": ...}, or any text."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        return quote(body)
    return quote(text if isinstance(text, str) else json.dumps(text))


def quote(text: str | bytes) -> str:
    """The first 200 characters, on one line and printable."""
    if isinstance(text, bytes):
        text = text[: 8 * QUOTED].decode("utf-8", "replace")
    line = re.sub(r"\s+", " ", text[: 8 * QUOTED]).strip()
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= QUOTED else line[:QUOTED] + "..."
