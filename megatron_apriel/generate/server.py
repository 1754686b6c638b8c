"""Answers from a server that speaks OpenAI's protocol: vLLM, SGLang, llama-server, transformers serve, or a service.

Servers differ in who divides the answer. One with a parser of the trained format sends reasoning, content and calls in
fields; one without sends the text as the model wrote it, which :mod:`~megatron_apriel.generate.parsing` divides; and
llama-server does half of it. All are read the same: fields are taken as they are, text is parsed.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import httpx

from megatron_apriel.errors import ConfigError, ServerError, listed, words_of
from megatron_apriel.generate.answer import Answer, AnswerStream, Model, Part, Piece
from megatron_apriel.generate.conversation import Question
from megatron_apriel.generate.server_events import error_message, objects_of, whole_text
from megatron_apriel.generate.server_messages import body_of
from megatron_apriel.generate.server_reply import Reply, whole_answer
from megatron_apriel.terminal import note

_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0
PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of a server that may answer if it is asked again."""
ENDPOINT = "/chat/completions"


class ServerModel(Model):
    """A model behind an address.

    Args:
        address: of the server, as ``http://localhost:8000`` or with the path of the protocol, ``/v1``.
        model: its name on the server; needed where the server has several.
        key: sent as a bearer token; never printed.
        seconds: that may pass without a sign of the answer.
        attempts: at a server that is busy or does not answer; what it said is printed before each further one.
        trained: whether the model writes in the trained format. None: its text counts as reasoning until the final
            response begins; where it ends without one, it was an answer in another format.
        check: raises ServerError where the program that serves has ended; called when it does not answer.

    Raises:
        ConfigError: the address is none, or the server has several models and none was chosen.
        ServerError: no server answers there, or something else does.
    """

    def __init__(
        self,
        address: str,
        model: str = "",
        *,
        key: str = "",
        seconds: float = 600.0,
        attempts: int = 4,
        trained: bool | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = _base(address)
        self.trained, self.check = trained, check
        self.mounts = _unproxied(self.address)
        self.timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._attempts, self._plain = attempts, False
        self._without_parser = False
        self._client = httpx.Client(timeout=self.timeout, headers=self.headers, mounts=self.mounts)
        try:
            self.name = model or self._only_model()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    @property
    def begins(self) -> Part:
        """The part that a text begins in, as far as it is known before one came."""
        return Part.CONTENT if self.trained is False else Part.REASONING

    def stream(self, question: Question) -> AnswerStream:
        """Begin an answer; the server is asked when its first piece is read."""
        return AnswerStream(self._read(question))

    def _read(self, question: Question) -> Generator[Piece, None, Answer]:
        reply = Reply(Part.CONTENT if self._plain else self.begins)
        with self._asked(body_of(question, self.name)) as response:
            try:
                for event in objects_of(response):
                    yield from reply.pieces(event)
            except httpx.HTTPError as error:
                raise self._broken(error) from None
        yield from reply.rest()
        if reply.finish is None:
            raise ServerError(
                f"{self.address}: the answer broke off without a reason, after {reply.characters:,} characters.",
                "The server ended, or something between cut the connection.",
                "Look at what the server printed.",
            )
        return self._formed(reply)

    def _formed(self, reply: Reply) -> Answer:
        """The answer, and whether the model writes in the trained format, where nobody said."""
        if self.trained is None and reply.is_plain is not None:
            self._plain = reply.is_plain
        return whole_answer(reply, self.trained)

    @contextmanager
    def _asked(self, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """The server's response to a question, once it has one."""
        if self._without_parser and body.get("tools"):
            body["tool_choice"] = "none"
        for attempt in itertools.count(1):
            try:
                with self._client.stream("POST", self.address + ENDPOINT, json=body) as response:
                    if response.status_code == 200:
                        yield response
                        return
                    refusal, wait = self._refusal(response), _wait(response, attempt)
            except httpx.HTTPError as error:
                refusal, wait = self._unreachable(error), _wait(None, attempt)
            if wait is None and "tool-call-parser" in str(refusal) and "tool_choice" not in body:
                # vLLM without a parser; the calls are then in the text, where they are found too.
                self._without_parser, body["tool_choice"] = True, "none"
                continue
            if wait is None or attempt >= self._attempts:
                raise refusal
            note(f"{refusal.what} Trying again in {wait:g} s ({attempt} of {self._attempts - 1}).")
            sleep(wait)

    def _only_model(self) -> str:
        """The name of the one model that the server has."""
        try:
            with self._client.stream("GET", f"{self.address}/models") as response:
                if response.status_code != 200:
                    raise self._refusal(response)
                found = next(objects_of(response), {}).get("data")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        listing = found if isinstance(found, list) else []
        names = [one["id"] for one in listing if isinstance(one, dict) and isinstance(one.get("id"), str)]
        if not names:
            raise ServerError(
                f"{self.address}/models lists no models.",
                "A server that speaks OpenAI's protocol says there which it has.",
                "Give the address that ends in /v1, or the model's name.",
            )
        if len(names) > 1:
            raise ConfigError(
                f"{self.address} has {len(names)} models.", fix=f"Choose one by its name: {listed(names, 20)}."
            )
        return names[0]

    def _refusal(self, response: httpx.Response) -> ServerError:
        text = whole_text(response)
        try:
            said = error_message(httpx.Response(200, text=text).json())
        except ValueError:
            said = ""
        what = f"{response.url} answered {response.status_code} {response.reason_phrase}"
        ways = {
            401: "The server wants a key, or another one.",
            403: "The server wants a key, or another one.",
            404: "Give the address that ends in /v1, and the model's name as the server has it.",
            413: "Ask with fewer or smaller images.",
        }
        redirect = response.headers.get("location")
        way = f"It sends to {redirect}: give that address." if redirect else ways.get(response.status_code, "")
        return ServerError(f"{what}{f': {said}' if said else ''}.", fix=way)

    def _unreachable(self, error: httpx.HTTPError) -> ServerError:
        if isinstance(error, httpx.ReadTimeout):
            return ServerError(f"{self.address} gave no sign for {self._client.timeout.read:g} s.")
        return ServerError(
            f"{self.address} cannot be reached: {words_of(error)}.", fix="Start the server, or correct the address."
        )

    def _broken(self, error: httpx.HTTPError) -> ServerError:
        if isinstance(error, httpx.ReadTimeout):
            return ServerError(f"{self.address} gave no sign for {self._client.timeout.read:g} s within an answer.")
        return ServerError(
            f"{self.address}: the answer broke off: {words_of(error)}.",
            fix="Look at what the server printed.",
        )


def _base(address: str) -> str:
    """The address with the protocol's path. Raises ConfigError."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{address} is no server's address.", fix="Give one as http://localhost:8000/v1.")
    base = address.rstrip("/").removesuffix(ENDPOINT)
    return base if urlsplit(base).path else f"{base}/v1"


def _wait(response: httpx.Response | None, attempt: int) -> float | None:
    """Seconds until the next attempt; None where another would end alike."""
    if response is not None and response.status_code not in PASSING_STATUSES:
        return None
    asked = asked_to_wait(response) if response is not None else None
    return min(float(2 ** (attempt - 1)), _LONGEST_WAIT) if asked is None else asked


def asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds until the next attempt, by ``Retry-After`` in either of its forms; None where nothing is asked."""
    asked = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # a date without its zone cannot be compared
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else None


def _unproxied(address: str) -> dict[str, None]:
    """What keeps a proxy of the environment out of the way to this machine itself, for ``mounts`` of a client."""
    host = urlsplit(address).hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return {f"all://{f'[{host}]' if ':' in host else host}": None} if is_here else {}
