"""The form of an answer that calls tools, or whose response has a form, for servers that hold a model to it.

OpenAI's ``tool_choice`` may demand a call, of any tool or of one. Servers know a form of their own for that, bare JSON,
which these models were not trained to write. The one given here is the trained one: the reasoning stays free, and the
final response is ``<tool_calls>[{"name": "weather", "arguments": {...}}]</tool_calls>`` with arguments that fit the
tool's schema. Where the response has a form of its own, it is written so, or tools are called where there are any. It
is a structural tag as xgrammar reads it (https://xgrammar.mlc.ai/docs, "Structural Tag").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.turns.chat_markers import CALLS_CLOSING, CALLS_OPENING, RESPONSE_CLOSING, RESPONSE_OPENING

_INDENTED = 32
"""Most white space between two words of a response, which may be indented; calls are trained without."""


def forced_calls(schemas: Mapping[str, Any], *, single: bool, reasons: bool, response: Any = None) -> dict[str, Any]:
    """The structural tag of an answer.

    Args:
        schemas: JSON schemas of the arguments by the names of the tools that may be called; None takes none.
        single: whether exactly one call is wanted, and not one or more.
        reasons: whether the form begins with the reasoning, and not behind it.
        response: JSON schema of a response that may be written instead of calls; None if there must be calls.
    """
    calls = {
        "type": "tags_with_separator",
        "tags": [_call(name, schema) for name, schema in schemas.items()],
        "separator": ", ",
        "at_least_one": True,
        "stop_after_first": single,
    }
    written: list[dict[str, Any]] = [
        {"type": "const_string", "value": f"{CALLS_OPENING}["},
        calls,
        {"type": "const_string", "value": f"]{CALLS_CLOSING}"},
    ]
    if response is not None:
        said = _json(response, white_space=_INDENTED)
        either = [{"type": "sequence", "elements": written}, said]
        written = [{"type": "or", "elements": either}] if schemas else [said]
    elements: list[dict[str, Any]] = [
        {"type": "regex", "pattern": r"\n?"},  # The token that ends the marker before may hold the line end.
        *written,
    ]
    if reasons:
        reasoning = {"type": "any_text", "excludes": [RESPONSE_CLOSING]}
        elements.insert(0, {"type": "tag", "begin": "", "content": reasoning, "end": RESPONSE_OPENING})
    return {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}


def _call(name: str, schema: Any) -> dict[str, Any]:
    """A call of one tool; its schema stands alone, so that references inside of it hold."""
    schema = schema if isinstance(schema, dict) else {"properties": {}, "additionalProperties": False}
    return {
        "type": "tag",
        "begin": f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ',
        "content": _json({"type": "object", **schema}),
        "end": "}",
    }


def _json(schema: Any, white_space: int = 1) -> dict[str, Any]:
    """Text of a JSON schema; a model that is left to write white space may never end."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": white_space}
