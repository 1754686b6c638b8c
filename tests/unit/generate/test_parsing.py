"""Answers divided into their parts, whole and cut anywhere; the template renders what is parsed."""

from __future__ import annotations

import json
import random

import pytest

from megatron_apriel.data.corpus.chat import exported_chat_template, render_chat
from megatron_apriel.data.raw.turns import chat_markers
from megatron_apriel.generate.answer import Answer, Part
from megatron_apriel.generate.conversation import ToolCall
from megatron_apriel.generate.parsing import AnswerParser, parse_answer

CALLS = (
    ToolCall("weather", '{"city": "Zürich", "note": "</tool_calls> \\" [END FINAL RESPONSE]"}'),
    ToolCall("f", "{}"),
)
CALLS_TEXT = "[" + ", ".join(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in CALLS) + "]"

ANSWERS = {
    "whole": ("Hm.\n\nYes.\n[BEGIN FINAL RESPONSE]\nSo.\n\nIt is.\n[END FINAL RESPONSE]\n<|end|>\n</s>",
              Answer("Hm.\n\nYes.", "So.\n\nIt is.")),
    "no reasoning": ("[BEGIN FINAL RESPONSE]\nSo.\n[END FINAL RESPONSE]", Answer("", "So.")),
    "the prompt's words again": (
        " Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\nSo.", Answer("Hm.", "So."),
    ),
    "no end": ("Hm.\n[BEGIN FINAL RESPONSE]\nSo [END it", Answer("Hm.", "So [END it")),
    "cut in a marker": ("Hm.\n[BEGIN FINAL RESPONSE]\nSo.\n[END FINAL", Answer("Hm.", "So.")),
    "cut in the opening of calls": ("[BEGIN FINAL RESPONSE]\nSo.\n<tool_ca", Answer("", "So.")),
    "cut in the closing of calls": (
        f"[BEGIN FINAL RESPONSE]\n<tool_calls>{CALLS_TEXT}</tool_ca",
        Answer("", "", CALLS, problem="the tool calls have no </tool_calls>"),
    ),
    "cut behind calls": (f"[BEGIN FINAL RESPONSE]\n<tool_calls>{CALLS_TEXT}</tool_calls>\n[END", Answer("", "", CALLS)),
    "cut at a bracket": ("[BEGIN FINAL RESPONSE]\nIt is [", Answer("", "It is [")),
    "cut in a text that looks like a marker": (
        '[BEGIN FINAL RESPONSE]\n<tool_calls>[{"name": "f", "arguments": {"a": "</tool',
        Answer("", '<tool_calls>[{"name": "f", "arguments": {"a": "</tool',
               problem="the tool calls have no </tool_calls>"),
    ),
    "cut in the reasoning": (
        "Hm [BEGIN FINAL",
        Answer("Hm", problem="there is no [BEGIN FINAL RESPONSE]: the answer ends in its reasoning"),
    ),
    "nothing": ("", Answer(problem="there is no [BEGIN FINAL RESPONSE]: the answer ends in its reasoning")),
    "ended in the reasoning": (
        "Hm.\n[END FINAL RESPONSE]\n<|end|>",
        Answer("Hm.", problem="there is no [BEGIN FINAL RESPONSE]: the answer ends in its reasoning"),
    ),
    "the opening in the answer": (
        "[[BEGIN FINAL RESPONSE]\nIt begins with [BEGIN FINAL RESPONSE].\n[END FINAL RESPONSE] x",
        Answer("[", "It begins with [BEGIN FINAL RESPONSE]."),
    ),
    "calls": (
        f"Ask.\n[BEGIN FINAL RESPONSE]\nI ask.\n<tool_calls>{CALLS_TEXT}</tool_calls>\n[END FINAL RESPONSE]\n<|end|>",
        Answer("Ask.", "I ask.", CALLS),
    ),
    "calls alone, not ended": (f"[BEGIN FINAL RESPONSE]\n<tool_calls>{CALLS_TEXT}</tool_calls>", Answer("", "", CALLS)),
    "words behind calls": (
        f"[BEGIN FINAL RESPONSE]\nA\n<tool_calls>{CALLS_TEXT}</tool_calls>\nB\n[END FINAL RESPONSE]",
        Answer("", "A\nB", CALLS),
    ),
    "no calls": ("[BEGIN FINAL RESPONSE]\n<tool_calls>[]</tool_calls>\n[END FINAL RESPONSE]", Answer()),
    "calls that are no JSON": (
        "[BEGIN FINAL RESPONSE]\nA\n<tool_calls>[{]</tool_calls>\n[END FINAL RESPONSE]",
        Answer("", "A\n<tool_calls>[{]</tool_calls>", problem="the tool calls cannot be read: Expecting property name "
               "enclosed in double quotes: line 1 column 3 (char 2)"),
    ),
    "a call without a name": (
        '[BEGIN FINAL RESPONSE]\n<tool_calls>[{"arguments": {}}]</tool_calls>',
        Answer("", '<tool_calls>[{"arguments": {}}]</tool_calls>', problem='the tool calls cannot be read: '
               '{"arguments": {}} names no tool'),
    ),
    "calls with a string that has no end": (
        '[BEGIN FINAL RESPONSE]\n<tool_calls>[{"name": "f\n[END FINAL RESPONSE]\n<|end|>',
        Answer("", '<tool_calls>[{"name": "f', problem="the tool calls cannot be read: Invalid control character at: "
               "line 1 column 13 (char 12)"),
    ),
    "calls that were cut off": (
        '[BEGIN FINAL RESPONSE]\n<tool_calls>[{"name": "f',
        Answer("", '<tool_calls>[{"name": "f', problem="the tool calls have no </tool_calls>"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_divided(name: str) -> None:
    text, expected = ANSWERS[name]
    assert parse_answer(text) == expected


def test_nothing_depends_on_where_a_text_is_cut() -> None:
    chance = random.Random(0)
    words = [value for name, value in vars(chat_markers).items() if name.isupper()]
    words += [CALLS_TEXT, "[", "<", '"', "\n", " ", "a", "</", "[END", "\\"]
    texts = [text for text, _ in ANSWERS.values()]
    texts += ["".join(chance.choices(words, k=chance.randint(1, 9))) for _ in range(300)]
    for text in texts:
        for begins in (Part.REASONING, Part.CONTENT):
            whole = parse_answer(text, begins)
            for longest in (1, 3, 40):
                parser, pieces, rest = AnswerParser(begins), [], text
                while rest:
                    length = chance.randint(1, longest)
                    pieces += parser.feed(rest[:length])
                    rest = rest[length:]
                pieces += parser.finish()
                assert parser.answer() == whole, text
                joined = {part: "".join(piece.text for piece in pieces if piece.part is part) for part in Part}
                assert joined[Part.REASONING] == whole.reasoning
                if not whole.problem.startswith("the tool calls"):
                    assert joined[Part.CONTENT] == whole.content
                assert all(piece.text for piece in pieces)


def test_text_is_given_out_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser()
    given = ["".join(piece.text for piece in parser.feed(letter)) for letter in "Hm [B] no"]
    assert given == ["", "Hm", "", "", "", " [B]", "", " n", "o"]


def test_content_that_a_server_has_taken_the_reasoning_out_of() -> None:
    for text in ("So.", "[BEGIN FINAL RESPONSE]\nSo.\n[END FINAL RESPONSE]\n<|end|>", "So.\n[END FINAL RESPONSE]"):
        assert parse_answer(text, Part.CONTENT) == Answer("", "So.")


@pytest.mark.parametrize("reasoning", ["", "Hm."])
@pytest.mark.parametrize("calls", [(), CALLS])
def test_what_the_template_renders_is_parsed(reasoning: str, calls: tuple[ToolCall, ...]) -> None:
    prompt = [{"role": "user", "content": "Why?"}]
    turn = {"role": "assistant", "content": "So.", "reasoning_content": reasoning}
    turn["tool_calls"] = [{"function": {"name": call.name, "arguments": json.loads(call.arguments)}} for call in calls]
    text, ((start, end),) = render_chat([*prompt, turn])
    assert text[:start].endswith("\n<|assistant|>\nHere are my reasoning steps:\n")
    assert parse_answer(text[start:end]) == Answer(reasoning, "So.", calls)


def test_the_markers_are_the_templates() -> None:
    markers = [value for name, value in vars(chat_markers).items() if name.isupper()]
    assert len(markers) == 7 and all(marker in exported_chat_template() for marker in markers)
