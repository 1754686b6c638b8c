"""The description of an answer that exports carry, read by transformers' own parser: whole, and letter by letter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_parsing.response_parser import ResponseParser

from megatron_apriel.data.corpus.answer_format import response_template
from megatron_apriel.data.corpus.chat import render_chat

PROMPT = "<s><|user|>\nHi [BEGIN FINAL RESPONSE] {}\n<|end|>\n<|assistant|>\nHere are my reasoning steps:\n"
END = "\n[END FINAL RESPONSE]\n<|end|>\n</s>"
NESTED = {"a": {"b": [{"name": "x"}, {"name": "y", "c": "}]"}]}, "q": 'say "no" </tool_calls> [END FINAL RESPONSE]'}


def called(*calls: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]


def divided(text: str, step: int) -> tuple[dict[str, Any], str]:
    """The message, and the content as a server streams it."""
    parser = ResponseParser(response_template(), prefix=PROMPT)
    events = [*parser.initial_events]
    for place in range(0, len(text), step):
        events += parser.feed(text[place : place + step])
    message, last = parser.finalize()
    events += last
    chunks = [event for event in events if event["type"] == "region_chunk" and event["field"] == "content"]
    assert message.pop("role") == "assistant"
    return message, "".join(chunk["text"] for chunk in chunks)


@pytest.mark.parametrize(
    "conversation",
    [
        {"content": "Hello [x]\n\nworld"},
        {"content": "He said [END.", "reasoning_content": "Hm.\n\nSo: [BEGIN"},
        {"content": "", "tool_calls": called(("weather", {"city": "Zürich"}))},
        {"content": "I look.", "reasoning_content": "Two.", "tool_calls": called(("a", {}), ("b-c.d", NESTED))},
        {"content": 'As in [{"x": 1}], {"name": 2}.', "tool_calls": called(('a"b', {"x": [1, {"y": None}]}))},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_what_the_template_writes_is_read_back(conversation: dict[str, Any], step: int) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", **conversation}]
    text = render_chat(messages)[0].partition("Here are my reasoning steps:\n")[2]
    message, streamed = divided(text, step)
    expected = {
        "thinking": conversation.get("reasoning_content", ""),
        "content": conversation["content"],
        "tool_calls": conversation.get("tool_calls", []),
    }
    for call in message.get("tool_calls", []):
        call["function"]["name"] = json.loads(f'"{call["function"]["name"]}"')
    assert message == {name: value for name, value in expected.items() if value}
    assert streamed.strip() == conversation["content"]
    assert streamed == conversation["content"] or conversation.get("tool_calls")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I th", {"thinking": "I th"}),
        ("I think.</s>", {"thinking": "I think."}),
        ("I.\n[BEGIN FINAL RESPONSE]\nHello.\n</s>", {"thinking": "I.", "content": "Hello."}),
        ("I.\n[BEGIN FINAL RESPONSE]\nHel", {"thinking": "I.", "content": "Hel"}),
        ("I.\n[BEGIN FINAL RESPONSE]" + END, {"thinking": "I."}),
        (
            'I.\n[BEGIN FINAL RESPONSE]\n<tool_calls>[{"name": "a", "arguments": {"x',
            {"thinking": "I.", "tool_calls": called(("a", '{"x'))},
        ),
        (
            "I.\n[BEGIN FINAL RESPONSE]\n<tool_calls>[{oops]</tool_calls>" + END,
            {"thinking": "I.", "content": "<tool_calls>[{oops]</tool_calls>"},
        ),
        (
            'I.\n[BEGIN FINAL RESPONSE]\n<tool_calls> [ { "name" : "a", "arguments" : {} } ] </tool_calls>' + END,
            {"thinking": "I.", "tool_calls": called(("a", {}))},
        ),
    ],
)
@pytest.mark.parametrize("step", [1, 10_000])
def test_what_is_cut_off_or_no_call_is_text(text: str, expected: dict[str, Any], step: int) -> None:
    assert divided(text, step)[0] == expected
