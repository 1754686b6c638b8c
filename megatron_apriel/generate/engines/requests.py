"""One request to a running engine, and its reply as JSON."""

from __future__ import annotations

from typing import Any

import httpx

from megatron_apriel.errors import ServerError, brief, words_of
from megatron_apriel.generate.server_events import error_message, whole_text

_SECONDS = 600.0


def whole_reply(address: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that an address answers a body with. Raises ServerError if it is none, or the server refuses."""
    try:
        with httpx.stream("POST", address, json=body, timeout=_SECONDS, trust_env=False) as response:
            text = whole_text(response)
            status = response.status_code
        reply = httpx.Response(200, text=text).json()
    except httpx.HTTPError as error:
        raise ServerError(f"{address} cannot be reached: {words_of(error)}.") from None
    except ValueError:
        raise ServerError(f"{address} answered {status} with {brief(text)}.") from None
    if status != 200 or not isinstance(reply, dict):
        raise ServerError(f"{address} answered {status}: {error_message(reply) or brief(text)}.")
    return reply
