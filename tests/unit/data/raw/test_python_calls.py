"""Calls written as expressions of Python, in fields and texts; and calls in words, whatever stands around them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_chats import ASKED, chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record
from megatron_apriel.data.raw.turns.python_calls import python_calls

TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}]
EMS = {"name": "tide", "arguments": {"place": "Ems"}}


@pytest.mark.parametrize(
    "text, calls",
    [
        ('tide(place="Ems")', [EMS]),
        ('tide(place="Ems")\ntide(place="Ems")', [EMS, EMS]),
        ('[tide(place="Ems"), sea.rain(days=2, at=[1, {"a": -1.5}])]',
         [EMS, {"name": "sea.rain", "arguments": {"days": 2, "at": [1, {"a": -1.5}]}}]),
        ("f(a=true, b=null, c=False, d={'e': [false]})",
         [{"name": "f", "arguments": {"a": True, "b": None, "c": False, "d": {"e": [False]}}}]),
        ("now()", [{"name": "now", "arguments": {}}]),
    ],
)  # fmt: skip
def test_calls_as_expressions(text: str, calls: list[Any]) -> None:
    assert python_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    ["", "tide", "tide('Ems')", "tide(place=Ems)", "tide(**a)", "tide(a=1, a=2)", "x = tide(a=1)", "tide(a=1) + 1",
     "tide(a=open('b'))", "tide(a=1", "see tide(a=1)", "(" * 200_000 + ")"],
)  # fmt: skip
def test_what_is_no_call(text: str) -> None:
    assert python_calls(text) == []


def called(turns: list[dict[str, Any]], **beside: Any) -> list[Any]:
    document = parse_record(chat(*turns, **beside), "messages")
    return [one["function"] for one in document.messages[-1]["tool_calls"]]


def test_olmo_has_its_calls_in_a_field_of_text():
    functions = json.dumps([TOOLS[0]["function"]])
    system = {"role": "system", "content": "You may call functions.", "functions": functions, "function_calls": None}
    made = {"role": "assistant", "content": None, "functions": None, "function_calls": 'tide(place="Ems")'}
    document = parse_record(chat(system, ASKED, made), "messages")
    assert document.messages[-1]["tool_calls"] == [{"function": EMS}]
    assert document.tools == (TOOLS[0]["function"],)


@pytest.mark.parametrize(
    "text",
    [
        '<function_calls>\ntide(place="Ems")\n</function_calls>',
        '<|tool_call_start|>[tide(place="Ems")]<|tool_call_end|>',
        '<tool_call>tide(place="Ems")</tool_call>',
        '<function_call>{"name": "tide", "arguments": {"place": "Ems"}}</function_call>',
        '<multiplefunctions> <functioncall> {"name": "tide", "arguments": {"place": "Ems"}} </functioncall> '
        "</multiplefunctions>",
    ],
)
def test_calls_in_words_between_tags(text: str) -> None:
    assert called([ASKED, {"role": "assistant", "content": text}]) == [EMS]


ARGUMENTS = '{"place": "Ems"}'


@pytest.mark.parametrize(
    "text",
    [
        f'```json\n{{"name": "tide", "arguments": {ARGUMENTS}}}\n```',
        f'Action: ```json\n[{{"tool_name": "tide", "parameters": {ARGUMENTS}}}]\n```',
        f'{{"thought": "", "tool_calls": [{{"name": "tide", "arguments": {ARGUMENTS}}}]}}',
        f'<tool>{{"name": "tide", "arguments": {ARGUMENTS}}}</tool>',
        '<api_call>tide(place="Ems")</api_call>',
        f">>>tide\n{ARGUMENTS}",
        '```python\nprint(tide(place="Ems"))\n```',
    ],
)
def test_a_wrapped_call_of_an_offered_tool_is_refused(text: str) -> None:
    check_refused(chat(ASKED, {"role": "assistant", "content": text}, tools=TOOLS), "a call of 'tide' as words")


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "Ems", "length": 371}\n```',
        f'{{"tool_calls": 3, "name": "tide", "place": {ARGUMENTS}}}',
        "Action: wait",
        "<b>tide</b>",
        f"river\n{ARGUMENTS}",
    ],
)
def test_answers_beside_tools_that_are_no_calls(text: str) -> None:
    document = parse_record(chat(ASKED, {"role": "assistant", "content": text}, tools=TOOLS), "messages")
    assert document.messages[-1]["content"] == text
