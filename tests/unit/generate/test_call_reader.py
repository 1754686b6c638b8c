"""Calls read while they are written."""

from __future__ import annotations

import json
import random

import pytest

from megatron_apriel.generate.call_reader import CallReader


def read(text: str) -> CallReader:
    reader = CallReader()
    reader.feed(text)
    return reader


def seen(reader: CallReader) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in reader.calls]


def random_value(chance: random.Random, depth: int = 3) -> object:
    kind = chance.randrange(7 if depth else 5)
    if kind == 5:
        return [random_value(chance, depth - 1) for _ in range(chance.randrange(3))]
    if kind == 6:
        return {chance.choice('ab"\\{}[],: é'): random_value(chance, depth - 1) for _ in range(chance.randrange(3))}
    return (None, chance.random() * 1e9, True, -3, "".join(chance.choices('ab"\\{}[],: \né', k=5)))[kind]


def test_any_calls_are_read_as_json_reads_them() -> None:
    chance = random.Random(0)
    for _ in range(300):
        calls = []
        for _ in range(chance.randrange(4)):
            fields = [("name", "f" + chance.choice('"é ')), ("arguments", {"v": random_value(chance)})]
            fields += [("id", random_value(chance))] * chance.randrange(2)
            chance.shuffle(fields)
            calls.append(dict(fields))
        text = json.dumps(calls, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1)))
        reader = read(f" {text}\n")
        assert reader.is_whole, reader.problem
        assert [(name, json.loads(arguments)) for name, arguments in seen(reader)] == [
            (call["name"], call["arguments"]) for call in calls
        ]
        assert all(call.arguments in text for call in reader.calls)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "a '{' stands where none may"),
        ("[1]", "a '1' stands where none may"),
        ('[{"name": "f"}}', "a '}' stands where none may"),
        ('[{"name": "f"} {"name": "g"}]', "a '{' stands where none may"),
        ('[{"name": "f"},]', "a ']' stands where none may"),
        ('[{"name": "f"}] x', "a 'x' stands where none may"),
        ('[{"name": 7}]', "a name or key is no text"),
        ('[{"name": ""}]', "a call names no tool"),
        ('[{"n\\ame": "f"}]', "a name or key is no text"),
        ('[{"name": "\\ud800"}]', "a name or key is no text"),
        ("[{}]", "a call has no name, or arguments that are no object"),
        ('[{"name": "f", "arguments": [1]}]', "a call has no name, or arguments that are no object"),
        ('[{"name": "f", "arguments": "{}"}]', "a call has no name, or arguments that are no object"),
        ('[{"name": "f", "name": "g"}]', "a call says 'name' twice"),
        ('[{"name": "f", "arguments": {}, "\\u0061rguments": {}}]', "a call says 'arguments' twice"),
    ],
)
def test_lists_that_cannot_be_read(text: str, problem: str) -> None:
    for blocks in ([text], list(text)):
        reader = CallReader()
        for block in blocks:
            reader.feed(block)
        reader.feed('[{"name": "late", "arguments": {}}]')
        assert (reader.problem, reader.is_whole) == (problem, False)
        assert "late" not in [call.name for call in reader.calls]


def test_a_call_is_seen_once_it_must_be_one() -> None:
    text = '[{"arguments": {"a": 1}, "name": "f"}, {"name": "g", "arguments": {}}]'
    reader, when = CallReader(), {}
    for place, letter in enumerate(text):
        reader.feed(letter)
        for name, _ in seen(reader):
            when.setdefault(name, place)
    assert when == {"f": text.index('f"') + 1, "g": text.index("{}}]")}
    assert seen(read('[{"name": "f", "arguments": {"a": "x')) == [("f", '{"a": "x')]
    assert seen(read('[{"name": "f"')) == []


def test_long_arguments_are_read_in_time_that_grows_with_their_length() -> None:
    """Each letter is looked at once: a megabyte in letters would not end otherwise."""
    reader = CallReader()
    reader.feed('[{"name": "f", "arguments": {"text": "')
    for _ in range(300_000):
        reader.feed("x")
    reader.feed('"}}]')
    assert reader.is_whole and len(reader.calls[0].arguments) > 300_000
