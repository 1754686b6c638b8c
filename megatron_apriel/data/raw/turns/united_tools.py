"""Tools and calls out of a table that was written as JSON: each has, empty, the fields of all others.

``datasets`` and Arrow give every object of a column the same fields, so that the schema of one tool lists the arguments
of all, as null. A null is no schema, by which such tools are known; what else is null in them is as empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_apriel.data.raw.fields.taken import is_hollow, is_null

_SCHEMAS = ("parameters", "input_schema", "inputSchema")


def has_fields_of_others(value: Any) -> bool:
    """Whether one of the ``properties`` in a tool is empty."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            properties = one.get("properties")
            if isinstance(properties, Mapping) and any(map(_is_lacking, properties.values())):
                return True
            waiting += one.values()
    return False


def without_others(value: Any) -> Any:
    """A tool without what is empty in it; empty objects, which allow anything, stay."""
    if isinstance(value, Mapping):
        return {name: without_others(one) for name, one in value.items() if not _is_lacking(one)}
    return list(map(without_others, value)) if isinstance(value, list) else value


def _is_lacking(value: Any) -> bool:
    return is_null(value) or (isinstance(value, Mapping) and bool(value) and is_hollow(value, is_null))


def drop_arguments_of_others(function: dict[str, Any], tools: Sequence[Mapping[str, Any]]) -> None:
    """Take nulls out of a call's arguments that the schema of its tool does not name."""
    arguments = function["arguments"]
    if not isinstance(arguments, Mapping) or None not in arguments.values():
        return
    for tool in tools:
        own = tool.get("function", tool)
        if not isinstance(own, Mapping) or own.get("name") != function["name"]:
            continue
        schemas = (own.get(name) for name in _SCHEMAS)
        named = next((one.get("properties") for one in schemas if isinstance(one, Mapping)), None)
        if isinstance(named, Mapping):
            function["arguments"] = {name: one for name, one in arguments.items() if one is not None or name in named}
