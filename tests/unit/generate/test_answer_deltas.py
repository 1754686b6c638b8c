"""Answers as servers send them on: joined, the deltas are the answer in one piece, wherever its text was cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from megatron_apriel.data.raw.turns import chat_markers
from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_CLOSING, RESPONSE_OPENING
from megatron_apriel.generate.answer_deltas import ReasoningStream, ResponseStream
from megatron_apriel.generate.parsing import parse_answer

CALLS = [
    {"name": "weather", "arguments": {"city": "Zürich", "note": '</tool_calls> \\" [END FINAL RESPONSE] }]'}},
    {"name": "f", "arguments": {}},
    {"name": "search", "arguments": {"deep": [{"a": [1, -2.5e3, None]}, "]}", ""], "flag": True}},
]


class Client:
    """Joins what is sent, as OpenAI's clients do."""

    def __init__(self) -> None:
        self.reasoning = self.content = ""
        self.names: list[str] = []
        self.arguments: list[str] = []

    def take(self, stream: ResponseStream, text: str | None) -> None:
        delta = stream.finish() if text is None else stream.feed(text)
        self.content += delta.content
        for call in delta.calls:
            if call.number == len(self.names):
                assert call.name
                self.names.append(call.name)
                self.arguments.append("")
            else:
                assert not call.name and call.arguments
            self.arguments[call.number] += call.arguments

    @property
    def seen(self) -> tuple[object, ...]:
        return self.reasoning, self.content, self.names, self.arguments


def sent(blocks: Iterator[str] | list[str], *, reads_calls: bool = True) -> Client:
    """What a client has of an answer that comes in blocks, through the two streams as a server has them."""
    client, reasoning, response = Client(), ReasoningStream(), ResponseStream(reads_calls=reads_calls)
    for block in blocks:
        client.reasoning += reasoning.feed(block)
        if reasoning.ended:
            client.take(response, reasoning.rest())
    client.reasoning += reasoning.finish()
    if reasoning.ended:
        client.take(response, None)
    return client


def cut(text: str, chance: random.Random, longest: int) -> Iterator[str]:
    while text:
        length = chance.randint(1, longest)
        yield text[:length]
        text = text[length:]


def block_of(calls: object, **form: object) -> str:
    return f"<tool_calls>{json.dumps(calls, ensure_ascii=False, **form)}</tool_calls>"


ANSWERS = {
    "text": "Hm.\n[BEGIN FINAL RESPONSE]\nSo [it] is.\n[END FINAL RESPONSE]\n<|end|>\n",
    "calls": f"Ask.\n[BEGIN FINAL RESPONSE]\nI ask.\n{block_of(CALLS)}\n[END FINAL RESPONSE]\n<|end|>\n",
    "compact": f"[BEGIN FINAL RESPONSE]\n{block_of(CALLS, separators=(',', ':'))}\n[END FINAL RESPONSE]",
    "over lines": f"[BEGIN FINAL RESPONSE]\n{block_of(CALLS, indent=2)}",
    "two blocks": f"[BEGIN FINAL RESPONSE]\nA\n{block_of(CALLS[:1])}\nB {block_of(CALLS[1:])}\nC",
    "arguments first": '[BEGIN FINAL RESPONSE]<tool_calls>[{"arguments": {"a": 1}, "name": "f"}]</tool_calls>',
    "no arguments, and more than a name": '[BEGIN FINAL RESPONSE]<tool_calls>[{"id": 7, "name": "f"}]</tool_calls>',
    "no calls": f"[BEGIN FINAL RESPONSE]A{block_of([])}",
    "opened twice": "[BEGIN FINAL RESPONSE][BEGIN FINAL RESPONSE] x",
    "reasoning alone": "Hm. [BEGIN FINAL",
    "ended in its reasoning": "Hm.\n[END FINAL RESPONSE]\n<|end|>",
    "cut in a marker": "Hm.[BEGIN FINAL RESPONSE]So [END FIN",
    "cut in the opening of calls": "[BEGIN FINAL RESPONSE]So\n<tool_ca",
    "cut in the closing of calls": f"[BEGIN FINAL RESPONSE]{block_of(CALLS)[:-3]}",
    "nothing": "",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_deltas_join_to_the_answer(name: str) -> None:
    text, chance = ANSWERS[name], random.Random(0)
    answer = parse_answer(text)
    for longest in (1, 1, 2, 3, 7, 30, 1000):
        client = sent(cut(text, chance, longest))
        assert (client.reasoning, client.content) == (answer.reasoning, answer.content)
        assert list(zip(client.names, client.arguments, strict=True)) == [(c.name, c.arguments) for c in answer.calls]


def test_calls_are_sent_letter_for_letter() -> None:
    for name, form in (("calls", {}), ("compact", {"separators": (",", ":")}), ("over lines", {"indent": 2})):
        client = sent([ANSWERS[name]])
        assert client.names == [call["name"] for call in CALLS]
        for text, call in zip(client.arguments, CALLS, strict=True):
            assert json.loads(text) == call["arguments"]
            assert "".join(text.split()) == "".join(json.dumps(call["arguments"], ensure_ascii=False, **form).split())


def test_nothing_depends_on_where_a_text_is_cut() -> None:
    """Of texts that nobody meant, too: what is sent is the same, and nothing sent is missing from the whole answer."""
    chance = random.Random(1)
    words = [value for name, value in vars(chat_markers).items() if name.isupper()]
    words += [*'[]{},:"\\ a1', "\n", '"name"', '"arguments"', '"f"', "{}", '{"name": "f", "arguments": {', "</", "[END"]
    words += [json.dumps(CALLS), json.dumps(CALLS[0]), RESPONSE_OPENING]
    for _ in range(1500):
        text = chance.choice(("", RESPONSE_OPENING, RESPONSE_OPENING + "<tool_calls>["))
        text += "".join(chance.choices(words, k=chance.randint(1, 9)))
        whole, answer = sent([text]), parse_answer(text)
        for reads_calls in (True, False):
            expected = whole.seen if reads_calls else sent([text], reads_calls=False).seen
            for longest in (1, 3, 40):
                assert sent(cut(text, chance, longest), reads_calls=reads_calls).seen == expected, text
        assert whole.reasoning == answer.reasoning
        if not answer.problem.startswith("the tool calls"):
            assert (whole.content, whole.names) == (answer.content, [call.name for call in answer.calls]), text
            assert whole.arguments == [call.arguments for call in answer.calls]


def test_a_call_is_sent_as_it_is_written() -> None:
    text = f"Ask.{RESPONSE_OPENING}\n" + block_of([{"name": "weather", "arguments": {"city": "Oslo"}}])
    response, seen = ResponseStream(), []
    for letter in text.partition(RESPONSE_OPENING)[2]:
        seen += response.feed(letter).calls
    assert (seen[0].name, seen[0].arguments) == ("weather", "{")
    assert [call.arguments for call in seen] == list('{"city": "Oslo"}')
    assert not any(call.name for call in seen[1:])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("A\n<tool_calls>[{]</tool_calls>\nB", "A\nB\n<tool_calls>[{]</tool_calls>", []),
        ('A <tool_calls>[{"name": "f", "argum', 'A\n<tool_calls>[{"name": "f", "argum', []),
        ('A <tool_calls>[{"name": "f", "arguments": "x"}]</tool_calls>',
         'A\n<tool_calls>[{"name": "f", "arguments": "x"}]</tool_calls>', []),
        # What was sent cannot be taken back; the reason of the end says that it is not whole.
        ('A <tool_calls>[{"name": "f", "arguments": {"a": 1', "A", [("f", '{"a": 1')]),
        ('<tool_calls>[{"name": "f", "arguments": {}}, oops]</tool_calls>', "", [("f", "{}")]),
        ('<tool_calls>[{"name": "f", "arguments": {}, "name": "g"}]</tool_calls>', "", [("f", "{}")]),
        ('<tool_calls>[{"name": "\\ud800", "arguments": {}}]</tool_calls>',
         '<tool_calls>[{"name": "\\ud800", "arguments": {}}]</tool_calls>', []),
        # A string without an end does not hide the end of the answer.
        ('<tool_calls>[{"name": "f\n[END FINAL RESPONSE]\n<|end|>', '<tool_calls>[{"name": "f', []),
        ('<tool_calls>[{"name": "f", "arguments": "x"y"}]</tool_calls>\n[END FINAL RESPONSE]\n<|end|>',
         '<tool_calls>[{"name": "f", "arguments": "x"y"}]</tool_calls>', []),
    ],
)  # fmt: skip
def test_calls_that_cannot_be_read(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    client = sent([RESPONSE_OPENING + text + RESPONSE_CLOSING if text.endswith(">") else RESPONSE_OPENING + text])
    assert client.content == content
    assert list(zip(client.names, client.arguments, strict=True)) == calls


def test_calls_stay_text_where_none_are_wanted() -> None:
    text = f"I ask.\n{block_of(CALLS[1:])}"
    client = sent([f"{RESPONSE_OPENING}\n{text}\n{RESPONSE_CLOSING}\n"], reads_calls=False)
    assert client.content == text and not client.names
