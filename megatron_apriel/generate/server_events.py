"""What a server sends for one request: JSON objects, one after another as server-sent events, or one alone.

An address may belong to anything. Whatever is not such an answer is an error with what it was, and no line is longer
than an answer may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from megatron_apriel.errors import ServerError, brief

MOST_LINE_BYTES = 16 * 2**20
MOST_BYTES = 256 * 2**20
"""Of one answer; a token takes some hundred bytes of events."""


def objects_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of an answer, as they come.

    Raises:
        ServerError: it is something else, or the server reports an error in it.
        httpx.HTTPError: it broke off.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        for text in _events(_lines(response.iter_bytes())):
            if text.strip() == "[DONE]":
                return
            yield _object(text, response)
    else:
        yield _object(whole_text(response), response)


def whole_text(response: httpx.Response) -> str:
    """The body of an answer that is no stream. Raises ServerError if it is longer than any."""
    body = bytearray()
    for data in response.iter_bytes():
        body += data
        if len(body) > MOST_LINE_BYTES:
            raise _nonsense(response, f"more than {MOST_LINE_BYTES:,} bytes in one piece")
    return body.decode("utf-8", "replace")


def error_message(value: Any) -> str:
    """What an error's JSON says, in the spellings of the servers: ``error.message``, ``message``, ``detail``."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            return error_message(value[name])
    return "" if isinstance(value, dict) else brief(value, 600)


def _lines(blocks: Iterable[bytes]) -> Iterator[str]:
    rest, total = b"", 0
    for block in blocks:
        total += len(block)
        *lines, rest = (rest + block).split(b"\n")
        if max(len(rest), *map(len, lines), 0) > MOST_LINE_BYTES or total > MOST_BYTES:
            raise ServerError(
                f"the server sent {total:,} bytes and more for one answer, or a line of more than {MOST_LINE_BYTES:,}.",
                "No answer is that long.",
                "Set a limit on its tokens, or look at the server.",
            )
        yield from (line.decode("utf-8", "replace").removesuffix("\r") for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")


def _events(lines: Iterable[str]) -> Iterator[str]:
    """The data of each event; comments and other fields have no meaning here."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _object(text: str, response: httpx.Response) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _nonsense(response, brief(text.strip(), 120) if text.strip() else "nothing") from None
    if not isinstance(value, dict):
        raise _nonsense(response, brief(text, 120))
    if value.get("error"):
        raise ServerError(f"{response.url}: the server reports: {error_message(value)}.")
    return value


def _nonsense(response: httpx.Response, found: str) -> ServerError:
    kind = response.headers.get("content-type", "no content type")
    return ServerError(
        f"{response.url} answered {brief(kind)} instead of JSON: {found}.",
        "It is not a server that speaks OpenAI's protocol, or not the address of its protocol.",
        "Give the address that ends in /v1, such as http://localhost:8000/v1.",
    )
