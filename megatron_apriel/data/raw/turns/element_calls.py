"""Tool calls written as elements, one for each argument: Qwen3-Coder's, GLM's, MiniMax's and Anthropic's older ones.

An argument is a text there, and nothing says whether ``7`` is a number: the tool's schema does. Where there is none, a
value that could be either makes its record a bad one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord

_NAME = r"[\w.:/-]{1,200}"
_QWEN = re.compile(rf"<function=(?P<name>{_NAME})>(?P<inside>.*?)</function>", re.DOTALL)
_QWEN_ARGUMENT = re.compile(rf"<parameter=(?P<key>{_NAME})>\n?(?P<value>.*?)\n?</parameter>", re.DOTALL)
_INVOKE = re.compile(rf'<invoke name="(?P<name>{_NAME})">(?P<inside>.*?)</invoke>', re.DOTALL)
_INVOKE_ARGUMENT = re.compile(rf'<parameter name="(?P<key>{_NAME})">(?P<value>.*?)</parameter>', re.DOTALL)
_GLM = re.compile(rf"(?P<name>{_NAME})\s{{0,9}}(?P<inside>(?:<arg_key>.*</arg_value>\s{{0,9}})?)", re.DOTALL)
_GLM_ARGUMENT = re.compile(
    rf"<arg_key>\s{{0,9}}(?P<key>{_NAME})\s{{0,9}}</arg_key>\s{{0,9}}<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL
)
_FORMS = ((_QWEN, _QWEN_ARGUMENT), (_INVOKE, _INVOKE_ARGUMENT))


def element_calls(text: str) -> list[dict[str, Any]]:
    """The calls that are all of a text, their arguments texts; nothing if it is none, or holds anything else."""
    for call, argument in _FORMS:
        if found := list(call.finditer(text)):
            return [] if call.sub("", text).strip() else _read(found, argument)
    whole = _GLM.fullmatch(text.strip())
    return _read([whole], _GLM_ARGUMENT) if whole else []


def _read(calls: Sequence[re.Match[str]], argument: re.Pattern[str]) -> list[dict[str, Any]]:
    found = []
    for call in calls:
        arguments = {match["key"]: match["value"] for match in argument.finditer(call["inside"])}
        if argument.sub("", call["inside"]).strip():
            return []
        found.append({"name": call["name"], "arguments": arguments})
    return found


def settle_arguments(
    name: str, arguments: Mapping[str, str], tools: Sequence[Mapping[str, Any]], where: str, most_values: int
) -> dict[str, Any]:
    """The arguments as values, by the schema of the tool.

    Args:
        name: of the function.
        arguments: as texts.
        tools: schemas that are offered.
        where: names the turn.
        most_values: of a JSON text.

    Raises:
        BadRecord: a text is not of the kind that the schema says, or may be of two and there is no schema.
    """
    if not arguments and name not in [_function(tool).get("name") for tool in tools]:
        raise BadRecord(f"{where}: a tool call is not valid JSON, and {name!r} is no tool that is offered")
    return {
        key: _value(text, _kinds(name, key, tools), f"{where}: argument {key!r} of {name}", most_values)
        for key, text in arguments.items()
    }


def _kinds(name: str, key: str, tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The kinds that a schema allows for an argument; none where it does not say."""
    for tool in tools:
        function = _function(tool)
        if function.get("name") != name:
            continue
        schema = function.get("parameters", function.get("input_schema"))
        properties = schema.get("properties", schema) if isinstance(schema, Mapping) else None
        said = properties.get(key) if isinstance(properties, Mapping) else None
        kind = said.get("type") if isinstance(said, Mapping) else None
        return kind if isinstance(kind, list) else [kind] if kind else []
    return []


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def _value(text: str, kinds: list[Any], what: str, most_values: int) -> Any:
    if kinds and all(kind in ("string", "str") for kind in kinds):
        return text
    value: Any = text
    with suppress(BadRecord):
        value = parsed_json(text.strip().lower() if text.strip() in ("True", "False", "None") else text, most_values)
    if not kinds and not isinstance(value, str):
        raise BadRecord(
            f"{what} is {text!r}: a text or a value, and no schema says which; give its tools, or JSON calls"
        )
    if kinds and isinstance(value, str) and "string" not in kinds:
        raise BadRecord(f"{what} is {text!r}, and its schema says {json.dumps(kinds)}")
    return text if isinstance(value, str) else value
