"""A field added at any depth to any record that is read changes the document, is counted, or refuses the record.

Every object of every published record gets a field of a name that nobody has, and every field that the tables know of,
with values of several kinds. What must never happen is that everything stays as it was: the field was read past.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from megatron_apriel.data.raw.fields.envelopes import ROLES
from megatron_apriel.data.raw.fields.meanings import FIELDS, MAPPABLE
from megatron_apriel.data.raw.fields.refused import REFUSED
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import Reading, parse_reading
from megatron_apriel.data.raw.records.conversion import parse_record, recognise
from tests.unit.data.corpus.published_shapes import PUBLISHED

UNKNOWN = "zz_of_nobody"
VALUES = ("zz", 7, False, ["zz"], {"zz": "zz"}, [{"zz": "zz"}], "", [], {})
KNOWN = tuple(dict.fromkeys(name for row in FIELDS for name in row.names))
IDENTITIES = {
    "call_id",
    "id",
    "name",
    "signature",
    "tool_call_id",
    "tool_call_ids",
    "tool_id",
    "tool_name",
    "tool_use_id",
}
"""They say which call a result answers: where there is one of each nothing depends on them."""
NAMED = tuple(dict.fromkeys(name for rule in REFUSED for name in (*rule.names.split(), *rule.words.split())))


def outcome(record: dict[str, Any], shape: str, reading: Reading) -> Any:
    try:
        document = parse_record(record, shape, reading)
    except BadRecord as problem:
        return str(problem)
    return document, document.remarks.unused


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all objects in a record; JSON texts are looked into."""
    if isinstance(value, str) and value[:1] in "[{" and value[-1:] in "]}":
        try:
            inner = json.loads(value)
        except ValueError:
            return
        yield from objects(inner, (*path, json.loads))
    elif isinstance(value, dict):
        yield path
        for name, one in value.items():
            yield from objects(one, (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from objects(one, (*path, number))


def read_part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record without fields that are not used at all; a text of theirs may be JSON, and is counted as a text."""
    unused = PUBLISHED[name].unused or {}
    return {field: value for field, value in record.items() if field not in unused}


def with_field(value: Any, path: tuple[Any, ...], name: str, added: Any) -> Any:
    if not path:
        return {**value, name: added}
    if path[0] is json.loads:
        return json.dumps(with_field(json.loads(value), path[1:], name, added))
    changed = copy.copy(value)
    changed[path[0]] = with_field(value[path[0]], path[1:], name, added)
    return changed


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = json.loads(value) if step is json.loads else value[step]
    return value


def cases(name: str) -> Iterator[tuple[dict[str, Any], str, Reading]]:
    case = PUBLISHED[name]
    reading = parse_reading(case.maps, (), MAPPABLE, tuple(ROLES))
    for record in case.records:
        shape = recognise(record, reading)
        assert shape is not None
        yield record, shape, reading


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_unknown_field_changes_the_summary(name: str) -> None:
    added = 0
    for record, shape, reading in cases(name):
        before = outcome(record, shape, reading)
        for path in objects(read_part(record, name)):
            for value in VALUES:
                after = outcome(with_field(record, path, UNKNOWN, value), shape, reading)
                assert after != before, f"{path}: {UNKNOWN}={value!r} was read past"
                added += 1
    assert added


def kind_of(shape: str, value: dict[str, Any], path: tuple[Any, ...]) -> Any:
    """Alike for objects in one place of one shape that have the same fields and, of turns, the same speaker."""
    place = tuple(one if isinstance(one, str) else "" for one in path)
    return shape, place, tuple(value), str([value.get(name) for name in ("role", "from", "type", "speaker")])


@cache
def kinds_of_objects() -> dict[Any, tuple[str, int, tuple[Any, ...]]]:
    """Of each kind of object the first: its case, record and path. Two of one kind would be tried for the same."""
    found: dict[Any, tuple[str, int, tuple[Any, ...]]] = {}
    for name in PUBLISHED:
        for number, (record, shape, _) in enumerate(cases(name)):
            for path in objects(read_part(record, name)):
                found.setdefault(kind_of(shape, at(record, path), path), (name, number, path))
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_field_changes_the_document_or_is_counted(name: str) -> None:
    """Each field in each kind of object, as a text in one and as an object in the next."""
    first = list(kinds_of_objects().values())
    for number, (record, shape, reading) in enumerate(cases(name)):
        before = outcome(record, shape, reading)
        for path in objects(read_part(record, name)):
            if (name, number, path) not in first:
                continue
            there, values = at(record, path), ("zz", {"zz": "zz"})
            for turn, field in enumerate((*KNOWN, *NAMED), first.index((name, number, path))):
                if field in there or field in IDENTITIES:
                    continue
                value = values[turn % 2]
                after = outcome(with_field(record, path, field, value), shape, reading)
                assert after != before, f"{path}: {field}={value!r} was read past"
