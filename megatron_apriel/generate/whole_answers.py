"""One question put to a server that answers it whole, and what a refusal or silence of the server means.

A long answer takes longer than any pause within a stream, and a question may stand in the server's own line before. So
a server's silence says nothing: now and then it is asked for its list of models, and counts as gone only where it does
not answer that either.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, Self

import httpx

from megatron_apriel.errors import ServerError, words_of
from megatron_apriel.generate.answer import Answer
from megatron_apriel.generate.conversation import Question
from megatron_apriel.generate.server import ENDPOINT, PASSING_STATUSES, ServerModel, asked_to_wait
from megatron_apriel.generate.server_events import MOST_LINE_BYTES, error_message
from megatron_apriel.generate.server_messages import body_of
from megatron_apriel.generate.server_reply import Reply, whole_answer

LONGEST_ANSWER_S = 6 * 3600.0
"""After which an answer is not waited for any longer, although the server lives. # assumption: 131,072 tokens at 6 a
second"""
_SIGN_OF_LIFE_S = 60.0
"""In which a server that lives says which models it has, however busy it is."""
_BUSY_STATUSES = {429, 503}
"""The server takes no questions now, whatever they are."""
_REFUSING_STATUSES = {401, 404}
"""It takes none of this key, or of this model, at all."""


class PassingError(Exception):
    """May not come again."""


class UnreachableError(PassingError):
    """Nobody listens."""


class BusyError(PassingError):
    """The server takes no questions now. ``wait``: seconds for which it wants none; None where it does not say."""

    def __init__(self, what: str, wait: float | None) -> None:
        super().__init__(what)
        self.wait = wait


class RefusedError(Exception):
    """The server would refuse every other question as well."""


class WholeAnswers:
    """Asks a server one question after the other, over a connection of its own; an asynchronous context manager.

    Its own, because a pool looks through all of its connections for every request.

    Args:
        server: that is asked.
        trusted: certificates.
    """

    def __init__(self, server: ServerModel, trusted: ssl.SSLContext) -> None:
        self._server, self._trusted = server, trusted
        self._endpoint = httpx.URL(server.address + ENDPOINT)
        seconds = server.timeout
        # Without an end to reading, which _sent watches over.
        self._client = self._new_client(httpx.Timeout(seconds.write, connect=seconds.connect, read=None))

    def _new_client(self, timeout: httpx.Timeout) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers=self._server.headers, timeout=timeout, limits=httpx.Limits(max_connections=1),
            verify=self._trusted, mounts=self._server.mounts,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._client.__aexit__(*exception)

    async def ask(self, question: Question, connected: Callable[[], None]) -> Answer:
        """The answer to a question.

        Args:
            question: that is asked.
            connected: called as soon as the server listens.

        Raises:
            PassingError: another attempt may end otherwise.
            RefusedError: every other question would end alike.
            ServerError: another attempt at this one would.
        """
        server = self._server
        body: dict[str, Any] = {**body_of(question, server.name), "stream": False}
        del body["stream_options"]
        try:
            response, text = await self._sent(body, connected)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnreachableError(f"{server.address} cannot be reached: {words_of(error)}") from None
        except httpx.HTTPError as error:
            raise PassingError(f"{server.address}: {words_of(error)}") from None
        said = _object(text)
        if response.status_code != 200:
            raise _refusal(server, response, said)
        if said is None:
            raise ServerError(f"{server.address} answered something else than JSON.")
        if said.get("error"):
            raise ServerError(f"{server.address} reports: {error_message(said)}.")
        reply = Reply(server.begins)
        for _ in reply.pieces(said):
            pass
        for _ in reply.rest():
            pass
        if reply.finish is None:
            raise ServerError(f"{server.address}: the answer has no reason of its end.")
        return whole_answer(reply, server.trained)

    async def _sent(self, body: dict[str, Any], connected: Callable[[], None]) -> tuple[httpx.Response, bytes]:
        """The response to a body, and its text, for as long as the server shows that it lives."""
        request = asyncio.create_task(self._response(body, connected))
        begun = time.monotonic()
        try:
            while not (await asyncio.wait({request}, timeout=self._server.timeout.read))[0]:
                seconds = time.monotonic() - begun
                if seconds > LONGEST_ANSWER_S or not await self._lives():
                    raise PassingError(f"{self._server.address} gave no sign of an answer for {seconds:.0f} s")
            return request.result()
        finally:
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    async def _response(self, body: dict[str, Any], connected: Callable[[], None]) -> tuple[httpx.Response, bytes]:
        async def trace(event: str, _: Any) -> None:
            if event.endswith("send_request_headers.started"):
                connected()

        async with self._client.stream("POST", self._endpoint, json=body, extensions={"trace": trace}) as response:
            text = bytearray()
            async for block in response.aiter_bytes():
                text += block
                if len(text) > MOST_LINE_BYTES:
                    raise ServerError(
                        f"{self._server.address} sent more than {MOST_LINE_BYTES:,} bytes for one answer."
                    )
            return response, bytes(text)

    async def _lives(self) -> bool:
        try:
            async with self._new_client(httpx.Timeout(_SIGN_OF_LIFE_S)) as client:
                return (await client.get(f"{self._server.address}/models")).status_code < 500
        except httpx.HTTPError:
            return False


def _refusal(server: ServerModel, response: httpx.Response, said: dict[str, Any] | None) -> Exception:
    status = response.status_code
    what = f"{server.address} answered {status}: {(said and error_message(said)) or response.reason_phrase}"
    if status in _BUSY_STATUSES:
        return BusyError(what, asked_to_wait(response))
    if status in PASSING_STATUSES:
        return PassingError(what)
    return RefusedError(what) if status in _REFUSING_STATUSES else ServerError(f"{what}.")


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
