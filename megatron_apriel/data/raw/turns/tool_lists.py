"""Lists of tools in fields that nobody reads, known by what they hold: the answers call what they offer.

A tool is a name with a schema of its arguments, in OpenAI's, Anthropic's, Gemini's or Bedrock's form. A call has values
where a tool has a schema, so that lists of calls are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord, way_out

_AROUND = ("function", "toolSpec", "functionDeclarations", "tools", "functions")
"""What holds a tool, or several, in an object."""
_SCHEMAS = ("parameters", "input_schema", "inputSchema", "arguments", "args_schema")
_VALUES = 100_000
"""Most of a JSON text that is looked into."""


def check_no_tools(path: str, value: Any, said: Sequence[str], ignored: frozenset[str]) -> None:
    """Raise BadRecord if a field of a record, or of an object in it, lists tools that no turn holds."""
    waiting = [(path, value)]
    while waiting:
        place, one = waiting.pop()
        if place in ignored:
            continue
        tools = _tools_of(one)
        if tools and not any(all(map(text.__contains__, tools)) for text in said):
            raise BadRecord(
                f"field {place!r} lists tools, which the answers may call, and they would be left out: --map "
                f"{place}=tools reads them{way_out(place)}"
            )
        if isinstance(one, Mapping):
            waiting += [(f"{place}.{key}", inner) for key, inner in one.items()]


def _tools_of(value: Any, depth: int = 0) -> list[str]:
    """Names and descriptions of the tools that a value lists; none where it is no list of tools."""
    if isinstance(value, str) and depth < 2:
        value = _parsed(value)
    listed = value if isinstance(value, list) else [value]
    found: list[str] = []
    for one in listed:
        said = _tools_of(one, depth + 1) if isinstance(one, str | list) and depth < 2 else _tool(one, depth)
        if not said:
            return []
        found += said
    return found


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith(("[{", "{")) or not any(f'"{name}"' in text for name in _SCHEMAS):
        return None
    try:
        return parsed_json(text, _VALUES)
    except BadRecord:
        return None


def _tool(value: Any, depth: int) -> list[str]:
    if not isinstance(value, Mapping) or depth > len(_AROUND):
        return []
    for name in _AROUND:
        inside = value.get(name)
        if isinstance(inside, Mapping | list) and inside:
            return _tools_of(inside, depth + 1)
    if not isinstance(value.get("name"), str) or not any(_is_schema(value.get(name)) for name in _SCHEMAS):
        return []
    about = value.get("description")
    return [value["name"], *([about] if isinstance(about, str) else [])]


def _is_schema(value: Any) -> bool:
    """Whether a value describes arguments: JSON Schema, or a kind for each of them."""
    if not isinstance(value, Mapping) or not value:
        return False
    if isinstance(value.get("properties"), Mapping) or isinstance(value.get("json"), Mapping):
        return True
    return all(isinstance(one, Mapping) and "type" in one for one in value.values())
