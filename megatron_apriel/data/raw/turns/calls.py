"""Tools, calls of them and their results, in every published spelling.

Calls stand in a turn's ``tool_calls`` (OpenAI), in ``function_call`` (before there were tools), in a turn of their own
(``function_call`` of ShareGPT, ``tool_call`` of ms-swift), as parts (Anthropic), or in the text between tags and
special tokens (``call_spellings``). Results of parallel calls come in any order, distinguished by ids or names; they
are put in the order of the calls, since the chat format shows no ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from megatron_apriel.data.raw.fields.meanings import (
    CALL_ARGUMENTS,
    CALL_FUNCTION,
    CALL_ID,
    CALL_NAME,
    CALL_TYPE,
    RESULT_ID,
)
from megatron_apriel.data.raw.fields.ordering import check_order
from megatron_apriel.data.raw.fields.taken import Fields, check_text, is_nothing, kind_of
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.pictures.places import rows_of
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.turns.call_spellings import begun_call, calls_within, in_one_spelling, unknown_spelling
from megatron_apriel.data.raw.turns.element_calls import element_calls, settle_arguments
from megatron_apriel.data.raw.turns.python_calls import python_calls, python_literal
from megatron_apriel.data.raw.turns.united_tools import drop_arguments_of_others, has_fields_of_others, without_others
from megatron_apriel.quantities import counted

_KINDS = ("function", "tool_use", "tool_call", "function_call")
"""What makers call a call of a function."""
_TAGGED_RESULT = re.compile(r"<(tool_response|TOOL_RESPONSE)>\s*(.*?)\s*</\1>", re.DOTALL)
_BLOCK = re.compile(r"```(?:\w{0,20})\s{0,9}\n(?P<inside>.*?)\s{0,9}```", re.DOTALL)
_ELEMENT = re.compile(r"<(\w{1,30})>(?P<inside>.*)</\1>", re.DOTALL)
_BEFORE_CALL = re.compile(r"(?:Action|Call|Function|Tool call):\s{0,9}|>>>", re.IGNORECASE)
_NAMED_BEFORE = re.compile(r"(?P<name>[\w.-]{1,100})\s{0,9}\n\s{0,9}\{.*\}", re.DOTALL)
"""Functionary's: the name, and its arguments on the next line."""
_NAMES_CALL = re.compile(rf'"(?:{"|".join(CALL_NAME.names)})"')
_MOST_WRAPPINGS = 4
_BEGINS_CALL = re.compile(r"(?:\[|print\()?\s{0,9}(?P<name>[\w.]{1,100})\(")
_RESULT_CHARACTERS = 100_000
"""Of a result that is looked into for the call that it answers."""

Call = dict[str, Any]
"""A call as the chat template reads it, with its ``id`` beside until results are in order, and with ``as_texts`` until
arguments that were written without quotes are what the tool's schema says."""


def tools_of(value: Any, what: str, most_values: int) -> tuple[dict[str, Any], ...]:
    """Schemas of tools: a list of objects or of their JSON texts, or the JSON text of it. Raises BadRecord."""
    if isinstance(value, str) and value.strip():
        value = parsed_json(value, most_values, what)
    if is_nothing(value) or value == "":
        return ()
    if isinstance(value, Mapping):
        value = rows_of(value) or [value]
    if isinstance(value, list):
        value = [parsed_json(one, most_values, what) if isinstance(one, str) else one for one in value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRecord(f"{what} is not a list of JSON schemas")
    check_text(value, what)
    try:
        return tuple(without_others(tool) if has_fields_of_others(tool) else tool for tool in value)
    except RecursionError:
        raise BadRecord(f"{what} is nested too deeply") from None


def calls_of(value: Any, owner: Fields, path: str, where: str, most_values: int) -> list[Call]:
    """Calls out of a field: a list, one call, or the JSON text of either. Raises BadRecord."""
    what = f"{where}: {path.rpartition('.')[2]}"
    if isinstance(value, str):
        try:
            value = parsed_json(value, most_values, what)
        except BadRecord:
            if not (written := python_calls(value)):
                raise
            value = written
    if isinstance(value, Mapping):
        value = rows_of(value) or [value]
    if not isinstance(value, list):
        raise BadRecord(f"{what} is not a list")
    check_order(owner.kept(value, path), path, counted=False)  # results name their ids, whatever they are
    found = []
    for one in value:
        one = parsed_json(one, most_values, what) if isinstance(one, str) else one
        if not isinstance(one, Mapping):
            raise BadRecord(f"{where}: a tool call is {kind_of(one)}, not an object")
        found.append(call_of(owner.inner(one, "call", path), where, most_values))
    return found


def call_of(call: Fields, where: str, most_values: int) -> Call:
    """One call. Raises BadRecord."""
    kind = call.take(*CALL_TYPE.names)
    if kind is not None and not (isinstance(kind, str) and plain_name(kind) in _KINDS):
        raise BadRecord(f"{where}: a tool call of type {kind!r}; known: function")
    identity = call.take(*CALL_ID.names)
    path = call.path("function")
    inner = call.take(*CALL_FUNCTION.names)
    function = call
    if isinstance(inner, Mapping):
        function = call.inner(inner, "call", path)
    elif inner is not None:
        raise BadRecord(f"{where}: the function of a tool call is {kind_of(inner)}, not an object")
    name = function.take(*CALL_NAME.names)
    if not isinstance(name, str) or not name:
        raise BadRecord(f"{where}: a tool call without the function's name")
    arguments = function.take(*CALL_ARGUMENTS.names)
    given, parsed = arguments, arguments
    if isinstance(arguments, str) and arguments.strip():
        parsed = parsed_json(arguments, most_values, f"{where}: arguments of {name}")
        if isinstance(parsed, str) and parsed.strip():  # JSON text of a JSON text
            given = parsed
            parsed = parsed_json(parsed, most_values, f"{where}: arguments of {name}")
    if is_nothing(parsed) or parsed == "" or (isinstance(parsed, str) and not parsed.strip()):
        given = given if isinstance(given, str) and given.strip() not in ("", "null", '""', "[]") else {}
        parsed = {}
    if not isinstance(parsed, Mapping):
        raise BadRecord(f"{where}: the arguments of {name} are not a JSON object")
    check_text([name, given, parsed], f"{where}: the call of {name}")
    return {"function": {"name": name, "arguments": given}, "id": identity}


def same_calls(some: Sequence[Call], others: Sequence[Call]) -> bool:
    """Whether calls that stand in two places of a turn are the same: of the same functions, with the same arguments."""
    return [_plain_call(one) for one in some] == [_plain_call(one) for one in others]


def _plain_call(call: Call) -> tuple[str, Any]:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return call["function"]["name"], arguments


def calls_in_turn(text: str, owner: Fields, where: str, most_values: int) -> list[Call]:
    """The calls that are all of a turn's text: JSON, one to a line, or between tags. Raises BadRecord."""
    rest, calls = calls_in_text(text, owner, where, most_values)
    if calls:
        if rest:
            raise BadRecord(f"{where}: a turn of calls holds other words as well: {rest[:80]!r}")
        return calls
    try:
        return _read_calls(text, owner, where, most_values)
    except BadRecord:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [call for line in lines for call in _read_calls(line, owner, where, most_values)]


def calls_in_text(text: str, owner: Fields, where: str, most_values: int) -> tuple[str, list[Call]]:
    """The words of an assistant, and the calls that stand in them between tags.

    Raises:
        BadRecord: what stands between the tags is no call, or words follow it: they would change places.
    """
    text = in_one_spelling(text)
    found = calls_within(text)
    if not found:
        if unknown := unknown_spelling(text) or begun_call(text):
            raise BadRecord(
                f"{where}: {unknown!r} begins a tool call without an end, or in a spelling that is not known"
            )
        return text, []
    calls = [call for match in found for call in _read_calls(match["call"], owner, where, most_values)]
    between = [text[before.end() : after.start()] for before, after in pairwise(found)]
    if "".join([*between, text[found[-1].end() :]]).strip():
        raise BadRecord(f"{where}: words stand behind a tool call; the chat format has calls last")
    return text[: found[0].start()].strip(), calls


def _read_calls(text: str, owner: Fields, where: str, most_values: int) -> list[Call]:
    text = text.strip()
    try:
        value = parsed_json(text, most_values, f"{where}: a tool call")
    except BadRecord:
        if written := element_calls(text):
            calls = calls_of(written, owner, owner.path("content"), where, most_values)
            return [{**call, "as_texts": True} for call in calls]
        value = python_literal(text) or python_calls(text)
        if not value:
            raise
    return calls_of(value, owner, owner.path("content"), where, most_values)


def settle_calls(calls: Sequence[Call], tools: Sequence[Mapping[str, Any]], where: str, most_values: int) -> None:
    """Give calls whose arguments were written as texts the values that the tools' schemas say, and take what other
    tools of a table left in any. Raises BadRecord."""
    for call in calls:
        if call.pop("as_texts", False):
            function = call["function"]
            values = settle_arguments(function["name"], function["arguments"], tools, where, most_values)
            check_text(values, f"{where}: the call of {function['name']}")
            function["arguments"] = values
        drop_arguments_of_others(call["function"], tools)


def refuse_call_in_words(text: str, tools: Sequence[Mapping[str, Any]], where: str, most_values: int) -> None:
    """Raise BadRecord for an answer that is nothing but calls of tools that are offered, as JSON or as Python's."""
    functions = [tool.get("function", tool) for tool in tools]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    if not names:
        return
    text = _without_wrapping(text)
    called = _called_as_json(text, most_values) or _called_as_python(text)
    if called and all(one in names for one in called):
        raise BadRecord(f"{where}: a call of {called[0]!r} as words; give it in 'tool_calls'")


def _without_wrapping(text: str) -> str:
    """A text without what makers write around a call alone: a word, a tag, or a block of code."""
    for _ in range(_MOST_WRAPPINGS):
        text = _BEFORE_CALL.sub("", text.strip())
        wrapped = _BLOCK.fullmatch(text) or _ELEMENT.fullmatch(text)
        if wrapped is None:
            break
        text = wrapped["inside"]
    return text.strip()


def _called_as_json(text: str, most_values: int) -> list[Any]:
    """The names in a JSON text that is nothing but calls (Llama's and xLAM's), or names them before, else nothing."""
    if (named := _NAMED_BEFORE.fullmatch(text)) is not None:
        return [named["name"]]
    if not text.startswith(("{", "[")) or not _NAMES_CALL.search(text):
        return []
    try:
        value = parsed_json(text, most_values)
    except BadRecord:
        return []
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and {*CALL_ARGUMENTS.names} & one.keys() for one in calls):
        return []
    return [next((one[name] for name in CALL_NAME.names if name in one), None) for one in calls]


def _called_as_python(text: str) -> list[str]:
    """The name of the first call in a text that is one expression of Python's (Gemma's, Llama 4's), else nothing."""
    begins = _BEGINS_CALL.match(text) if text.endswith((")", ")]")) else None
    return [begins["name"].rpartition(".")[2]] if begins else []


def named_in_result(text: str) -> tuple[Any, Any]:
    """The id and the name of a call inside of the JSON text of its result (Hermes), each None where there is none."""
    value = None
    with suppress(ValueError):
        value = json.loads(text) if text.lstrip().startswith("{") and len(text) <= _RESULT_CHARACTERS else None
    if not isinstance(value, dict):
        return None, None
    return next((value[name] for name in RESULT_ID.names if name in value), None), value.get("name")


def results_in_text(text: str) -> list[str]:
    """The results that are all of a text, between ``<tool_response>`` tags; nothing if it holds anything else."""
    return [match[2] for match in _TAGGED_RESULT.finditer(text)] if not _TAGGED_RESULT.sub("", text).strip() else []


def order_of_results(calls: Sequence[Call], ids: Sequence[Any], names: Sequence[Any], where: str) -> list[int]:
    """For the results of parallel calls, in which order to read them so that it is that of the calls.

    Args:
        calls: of the turn before.
        ids: of each result the id of its call, or None.
        names: of each result the name of its function, or None.
        where: names the results.

    Raises:
        BadRecord: results that cannot be distinguished, or answer no call.
    """
    known = [call.get("id") for call in calls]
    same = list(range(len(ids)))
    if any(not is_nothing(one) for one in ids) and any(not is_nothing(one) for one in known):
        return _places(known, ids, "tool_call_id", where)
    if any(not is_nothing(one) for one in ids) and len(calls) > 1:
        raise BadRecord(f"{where}: tool_call_id {ids[0]!r}, and the calls before it have no ids")
    functions = [call["function"]["name"] for call in calls]
    if strange := [name for name in names if not is_nothing(name) and name not in functions]:
        raise BadRecord(f"{where}: name {strange[0]!r} is that of no call before it; known: {functions}")
    if len(calls) > 1 and all(not is_nothing(name) for name in names):
        if len(set(functions)) == len(functions):
            return _places(functions, names, "name", where)
        if list(names) != functions[: len(names)]:
            raise BadRecord(f"{where}: results that only a name distinguishes, which several calls have")
    if len(calls) > 1 and len(ids) != len(calls):
        raise BadRecord(
            f"{where}: {counted(len(ids), 'result')} of {counted(len(calls), 'call')}, and no tool_call_id says which"
        )
    return same


def _places(known: Sequence[Any], given: Sequence[Any], field: str, where: str) -> list[int]:
    for one in given:
        if one not in known:
            raise BadRecord(f"{where}: {field} {one!r} is that of no call before it; known: {list(known)}")
    if len(set(map(str, given))) != len(given) or len(set(map(str, known))) != len(known):
        raise BadRecord(f"{where}: {field} is there twice, so results cannot be distinguished: {list(given)}")
    if len(given) != len(known):
        raise BadRecord(
            f"{where}: {counted(len(given), 'result')} of {counted(len(known), 'call')}; those of {field} are missing"
        )
    return sorted(range(len(given)), key=lambda number: list(known).index(given[number]))
