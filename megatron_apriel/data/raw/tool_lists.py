"""Lists of tools in fields that nobody reads, known by what they hold: the answers call what they offer.

A tool is a name with a schema of its arguments, in OpenAI's, Anthropic's, Gemini's or Bedrock's form. A call has values
where a tool has a schema, so that lists of calls are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord, way_out

_AROUND = ("function", "toolSpec", "functionDeclarations", "tools", "functions")
"""What holds a tool, or several, in an object."""
_SCHEMAS = ("parameters", "input_schema", "inputSchema", "arguments", "args_schema")
_VALUES = 100_000
"""Most of a JSON text that is looked into."""


def check_no_tools(path: str, value: Any, ignored: frozenset[str]) -> None:
    """Raise BadRecord if a field of a record, or of an object in it, lists tools."""
    waiting = [(path, value)]
    while waiting:
        place, one = waiting.pop()
        if place in ignored:
            continue
        if _lists_tools(one):
            raise BadRecord(
                f"field {place!r} lists tools, which the answers may call, and they would be left out: --map "
                f"{place}=tools reads them{way_out(place)}"
            )
        if isinstance(one, Mapping):
            waiting += [(f"{place}.{key}", inner) for key, inner in one.items()]


def _lists_tools(value: Any) -> bool:
    if isinstance(value, str):
        if not value.lstrip().startswith(("[{", "{")) or not any(f'"{name}"' in value for name in _SCHEMAS):
            return False
        try:
            value = parsed_json(value, _VALUES)
        except BadRecord:
            return False
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(map(_is_tool, listed))


def _is_tool(value: Any, depth: int = 0) -> bool:
    if isinstance(value, str) and value.startswith("{"):
        return depth == 0 and _lists_tools(value)
    if not isinstance(value, Mapping) or depth > len(_AROUND):
        return False
    for name in _AROUND:
        inside = value.get(name)
        if isinstance(inside, Mapping | list) and inside:
            return all(_is_tool(one, depth + 1) for one in (inside if isinstance(inside, list) else [inside]))
    return isinstance(value.get("name"), str) and any(_is_schema(value.get(name)) for name in _SCHEMAS)


def _is_schema(value: Any) -> bool:
    """Whether a value describes arguments: JSON Schema, or a kind for each of them."""
    if not isinstance(value, Mapping) or not value:
        return False
    if isinstance(value.get("properties"), Mapping) or isinstance(value.get("json"), Mapping):
        return True
    return all(isinstance(one, Mapping) and "type" in one for one in value.values())
