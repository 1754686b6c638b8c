"""What tables and tools write where nothing stood says nothing: NaN, and the united fields of other rows."""

from __future__ import annotations

from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, answer, chat, check_refused

from megatron_apriel.data.raw.documents import Conversation
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

NAN = float("nan")


def read(record: dict[str, Any]) -> Conversation:
    shape = recognise(record)
    assert shape is not None
    document = parse_record(record, shape)
    assert isinstance(document, Conversation)
    return document


@pytest.mark.parametrize(
    "record",
    [
        chat(tools=NAN),
        chat(system=NAN),
        chat(label=NAN, image=NAN, weight=NAN, error=NAN, source=NAN),
        chat({**ASKED, "weight": NAN}, {**ANSWERED, "weight": NAN, "tool_calls": NAN, "reasoning_content": NAN}),
    ],
)
def test_nan_is_nothing(record):
    document = read(record)
    assert document == read(chat())
    assert not document.remarks.unused


def test_nan_beside_a_prompt_is_nothing():
    pair = {"instruction": "Which colour?", "output": "Red."}
    assert read({**pair, "input": NAN}) == read(pair)


def test_nan_where_words_are_needed_is_refused():
    check_refused(answer(NAN), "the assistant says nothing")
    check_refused(
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": NAN}]}, "value is missing"
    )


EMPTY_CALLS = {
    "function_call": {"name": None, "arguments": None},
    "tool_calls": [{"id": None, "type": None, "function": {"name": None, "arguments": None}}],
}


@pytest.mark.parametrize("field", EMPTY_CALLS)
def test_united_fields_of_calls_are_none(field):
    empty = {field: EMPTY_CALLS[field]}
    document = read(chat({**ASKED, **empty}, {**ANSWERED, **empty}))
    assert document == read(chat())
    assert not document.remarks.unused


def test_a_call_that_only_lacks_its_name_is_refused():
    check_refused(
        answer(None, tool_calls=[{"function": {"name": None, "arguments": "{}"}}]), "without the function's name"
    )


def tool(name: str, required: Any = None, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def calling(*tools: dict[str, Any], **arguments: Any) -> Conversation:
    made = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "tide", "arguments": arguments}}],
    }
    return read(chat(ASKED, made, tools=list(tools)))


def test_fields_of_other_tools_are_taken_out():
    own = {"type": "string", "enum": None}
    united = tool("tide", ["place"], place=own, day=None, anything={}, depth={"type": None, "enum": None})
    document = calling(united, place="Ems", day=None)
    schema = {"type": "object", "properties": {"place": {"type": "string"}, "anything": {}}, "required": ["place"]}
    assert document.tools == ({"type": "function", "function": {"name": "tide", "parameters": schema}},)
    assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == {"place": "Ems"}


def test_nulls_of_one_tool_alone_stay():
    own = tool("tide", [], place={"type": ["string", "null"], "default": None})
    document = calling(own, place=None)
    assert document.tools == (own,)
    assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == {"place": None}


def test_an_argument_that_no_schema_names_stays_where_it_says_something():
    document = calling(tool("tide", [], place={"type": "string"}), day=None, depth=3)
    assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == {"depth": 3}


def test_tools_without_end_are_refused():
    nested: Any = {"properties": {"place": None, "day": {"type": "string"}}}
    for _ in range(2000):
        nested = {"items": nested}
    with pytest.raises(BadRecord, match="'tools' is nested too deeply"):
        parse_record(chat(tools=[nested]), "messages")
