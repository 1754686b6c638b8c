"""The exported template behind servers: they detect its image parts, and clients may send answers back unchanged."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jinja2
import pytest
from jinja2 import nodes
from markupsafe import Markup

from megatron_apriel.data.corpus.chat import ALIKE_TEMPLATES, exported_chat_template, renders_alike
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record

END = "[END FINAL RESPONSE]"
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
CALLS_TEXT = '<tool_calls>[{"name": "f", "arguments": {"x": 1}}]</tool_calls>'

ENDS = (
    "",
    END,
    f"\n{END}",
    f"\n{END}\n<|end|>",
    f"\n{END}\n<|end|>\n</s>",
    f"\n{END}\n<|end|>\n{END}\n<|end|>",
    f"{END} x",
)
THOUGHTS: dict[str, Any] = {
    "no reasoning": lambda said: {"content": said},
    "reasoning_content": lambda said: {"content": said, "reasoning_content": "Hm."},
    "reasoning": lambda said: {"content": said, "reasoning": "Hm.", "reasoning_content": None},
    "marked in its field": lambda said: {"content": said, "reasoning_content": f"Hm.\n{END}\n<|end|>"},
    "think tags": lambda said: {"content": f"<think>\nHm.\n</think>\n{said}"},
    "a closing tag": lambda said: {"content": f"Hm.\n</think>\n{said}"},
    "raw": lambda said: {"content": f"Hm.\n[BEGIN FINAL RESPONSE]\n{said}"},
    "raw with its opening": lambda said: {
        "content": f"Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\n{said}"
    },
    "in its field and raw": lambda said: {
        "content": f"[BEGIN FINAL RESPONSE]\n{said}",
        "reasoning_content": "Hm.",
    },
    "a thinking part": lambda said: {
        "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": said}]
    },
    "a thinking part of texts": lambda said: {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
            {"type": "text", "text": said},
        ]
    },
    "a reasoning part": lambda said: {
        "content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": said}]
    },
    "text parts": lambda said: {"content": [{"type": "text", "text": piece} for piece in (said[:2], said[2:])]},
}
"""Where a client may have the reasoning of an answer that it sends back."""


def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
    """By plain Jinja, as servers do it."""
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: Markup(json.dumps(value, ensure_ascii=False))
    template = environment.from_string(exported_chat_template())
    return template.render(messages=messages, bos_token="<s>", eos_token="</s>", **options)


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize(("end", "calls"), itertools.product(ENDS, (None, CALLS)))
def test_an_answer_sent_back_ends_once(thought: str, end: str, calls: Any) -> None:
    """In the prompt of the next turn its marker is gone; as the last turn it has the marker that was taught."""
    answer = {"role": "assistant", **THOUGHTS[thought](f"So.{end}"), "tool_calls": calls}
    messages = [{"role": "user", "content": "Why?"}, answer]
    said = f"So.\n{CALLS_TEXT}" if calls else "So."
    prompt = rendered([*messages, {"role": "user", "content": "?"}], add_generation_prompt=True)
    assert prompt == (
        f"<s><|user|>\nWhy?\n<|end|>\n<|assistant|>\n{said}\n<|end|>\n<|user|>\n?\n<|end|>\n"
        "<|assistant|>\nHere are my reasoning steps:\n"
    )
    reasoning = "" if thought in ("no reasoning", "text parts") else "Hm.\n"
    assert rendered(messages) == (
        f"<s><|user|>\nWhy?\n<|end|>\n<|assistant|>\nHere are my reasoning steps:\n{reasoning}"
        f"[BEGIN FINAL RESPONSE]\n{said}\n{END}\n<|end|>\n</s>"
    )


def loops_over_content(source: str) -> list[nodes.For]:
    """As vLLM finds out whether content may have parts: a loop over ``x['content']``, x being a loop's of messages."""
    tree = jinja2.Environment().parse(source)
    loops = list(tree.find_all(nodes.For))
    message_names = {
        loop.target.name
        for loop in loops
        if isinstance(loop.iter, nodes.Name) and loop.iter.name == "messages" and isinstance(loop.target, nodes.Name)
    }
    return [
        loop
        for loop in loops
        if isinstance(loop.iter, nodes.Getitem)
        and isinstance(loop.iter.node, nodes.Name)
        and loop.iter.node.name in message_names
        and isinstance(loop.iter.arg, nodes.Const)
        and loop.iter.arg.value == "content"
    ]


@pytest.mark.parametrize(
    "function",
    [
        {"name": "f", "description": "d", "parameters": {"type": "object", "strict": True}, "x": 1},
        {"description": "d", "x": 1, "name": "f", "parameters": {"type": "object", "strict": True}, "strict": False},
        {"strict": True, "parameters": {"type": "object", "strict": True}, "x": 1, "description": "d", "name": "f"},
        {"name": "f", "description": "d", "parameters": {"type": "object", "strict": True}, "x": 1, "y": None},
    ],
    ids=["as trained", "as SGLang has it", "backwards", "with nothing in a field"],
)
def test_a_tool_is_written_the_same_whatever_a_server_makes_of_it(function: dict[str, Any]) -> None:
    text = rendered([{"role": "user", "content": "Hi"}], tools=[{"function": function, "type": "function"}] * 2)
    described = '{"name": "f", "description": "d", "parameters": {"type": "object", "strict": true}, "x": 1}'
    tool = f'{{"type": "function", "function": {described}}}'
    assert (
        text == f"<s><|system|>\n<available_tools>[{tool}, {tool}]</available_tools>\n<|end|>\n<|user|>\nHi\n<|end|>\n"
    )


@pytest.mark.parametrize("function", [{"name": "f"}, {"description": None, "name": "f", "parameters": None}], ids=str)
def test_a_tool_with_a_name_alone(function: dict[str, Any]) -> None:
    text = rendered([{"role": "system", "content": "S"}], tools=[{"type": "function", "function": function}])
    tool = '{"type": "function", "function": {"name": "f"}}'
    assert text == f"<s><|system|>\nS\n<available_tools>[{tool}]</available_tools>\n<|end|>\n"


def test_a_developer_is_the_system() -> None:
    """As OpenAI's protocol calls it now."""
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        texts = [
            rendered([{"role": role, "content": "S"}, {"role": "user", "content": "Hi"}], tools=tools)
            for role in ("system", "developer")
        ]
        assert texts[0] == texts[1] and texts[0].count("<|system|>") == 1


@pytest.mark.parametrize(
    "given", [{}, {"arguments": ""}, {"arguments": None}, {"arguments": "{}"}, {"arguments": {}}], ids=str
)
def test_a_call_without_arguments_has_an_empty_object(given: dict[str, Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", **given}}
    text = rendered([{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "r"}])
    assert text.startswith('<s><|assistant|>\n<tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>\n<|end|>\n')


def test_an_answer_that_another_follows_is_an_earlier_one() -> None:
    """Where a client ends with an answer and asks for one more: nothing of the end of a conversation is before it."""
    messages = [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo.", "reasoning_content": "Hm."},
    ]  # fmt: skip
    assert rendered(messages, add_generation_prompt=True).endswith(
        "<|assistant|>\nYo.\n<|end|>\n<|assistant|>\nHere are my reasoning steps:\n"
    )
    assert rendered(messages).endswith("Hm.\n[BEGIN FINAL RESPONSE]\nYo.\n[END FINAL RESPONSE]\n<|end|>\n</s>")


def test_servers_see_that_content_may_have_images() -> None:
    """SGLang looks for the name ``message`` as well."""
    loops = loops_over_content(exported_chat_template())
    assert loops and all(isinstance(loop.iter, nodes.Getitem) for loop in loops)
    assert {loop.iter.node.name for loop in loops} == {"message"}  # type: ignore[attr-defined]
    through_a_variable = exported_chat_template().replace("for part in message['content']", "for part in content")
    assert not loops_over_content(through_a_variable)


@pytest.mark.parametrize("end", [f"\n{END}", f"\n{END}\n<|end|>", f"{END}\n<|end|>\n</s>\n"])
@pytest.mark.parametrize("thought", ["no reasoning", "reasoning_content", "think tags"])
def test_an_end_left_in_a_record_is_not_taught_twice(end: str, thought: str) -> None:
    answer = {"role": "assistant", **THOUGHTS[thought](f"So.{end}")}
    record = parse_record({"messages": [{"role": "user", "content": "Why?"}, answer]}, "messages")
    assert record.messages[-1]["content"] == "So."


@pytest.mark.parametrize(
    "answer",
    [
        {"content": f"It ends with {END}, always."},
        {"content": "So.", "reasoning_content": f"It ends with {END}."},
        {"content": "<think>Hm.</think>It begins with [BEGIN FINAL RESPONSE]."},
    ],
)
def test_an_answer_that_the_template_would_cut_is_refused(answer: dict[str, str]) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", **answer}]
    with pytest.raises(BadRecord, match="turn 2: the answer holds tags of reasoning that servers would cut it at"):
        parse_record({"messages": messages}, "messages")


def test_corpora_of_templates_that_rendered_alike_are_as_good() -> None:
    assert all(renders_alike(digest) for digest in ("", *ALIKE_TEMPLATES))
    assert not renders_alike("e" * 64)
