"""Records that list their turns: messages, conversations, pairs of user and assistant, a question with its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_apriel.data.raw.documents import Conversation
from megatron_apriel.data.raw.fields.envelopes import CALLING, REASONED, is_turn
from megatron_apriel.data.raw.fields.meanings import (
    ANSWERS,
    ASKED,
    CALLS,
    MADE,
    RECORD_REASONING,
    REPLIES,
    ROLE,
    SAID,
    TEXTS,
)
from megatron_apriel.data.raw.fields.taken import Fields, text_of
from megatron_apriel.data.raw.pictures.places import names_pictures
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.records.conversations import conversation
from megatron_apriel.data.raw.turns.calls import calls_of
from megatron_apriel.data.raw.turns.replies import reply_in, reply_turns
from megatron_apriel.data.raw.turns.transcripts import is_transcript
from megatron_apriel.data.raw.turns.turn import Turn, turns_of


def lists_turns(names: tuple[str, ...]) -> Callable[[Fields], bool]:
    """Whether the first of the names is there, or another one with what can be nothing but turns."""

    def fits(record: Fields) -> bool:
        return record.peek(names[0]) is not None or any(
            _are_turns(record.peek(name)) and not (name in _LISTS_OF_ANY and _are_pairs(record.peek(name)))
            for name in names[1:]
        )

    return fits


def _are_turns(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{") or is_transcript(value)
    if isinstance(value, dict):
        return bool(value) and all(isinstance(one, list) for one in value.values()) and _is_turn(value)
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, dict) and _is_turn(one) for one in value) or (
        len(value) > 1 and all(isinstance(one, str) for one in value)
    )


_LISTS_OF_ANY = ("data", "items", "interactions")
"""Names under which files keep records as well: pairs in them are records, and not the turns of one."""


def _are_pairs(value: Any) -> bool:
    """Whether a list holds pairs that do not say who speaks."""
    return isinstance(value, list) and any(isinstance(one, dict) and not is_turn(one) for one in value)


def _is_turn(value: dict[Any, Any]) -> bool:
    names = {plain_name(str(name)) for name in value}
    return bool(names & set(ROLE.names)) or (bool(names & set(ASKED.names)) and bool(names & set(SAID.names)))


def read_turns(names: tuple[str, ...], *, markers: bool) -> Callable[[Fields, int], Conversation]:
    def read(record: Fields, most_values: int) -> Conversation:
        name = next((name for name in names if _are_turns(record.peek(name))), names[0])
        value = record.take(name)
        if value is None and record.peek(name) is None:
            raise lacks(record, name)
        turns = turns_of(value, record, record.path(name), most_values)
        if turns[-1:] and turns[-1].role not in ("assistant", CALLING, REASONED) and (reply := _answer_beside(record)):
            turns += reply_turns(record, reply, most_values)
        if set(MADE) <= set(record.names()):
            for made in MADE:
                record.take(made)
        return conversation(record, turns, most_values, markers=markers)

    return read


def _answer_beside(record: Fields) -> str:
    """The field beside the turns that can be nothing but the answer to the last of them, or ""."""
    names = (*REPLIES.names, *(ANSWERS.names if any(name in record for name in RECORD_REASONING.names) else ()))
    return reply_in(record, tuple(name for name in names if name != "message" or isinstance(record.peek(name), dict)))


def lacks(record: Fields, name: str) -> BadRecord:
    present = ", ".join(one for one in record.names() if record.peek(one) is not None)
    return BadRecord(f"it has no {name}, as other records of its file do; its fields: {present or 'none'}")


def are_pairs(record: Fields) -> bool:
    names = TEXTS.names if names_pictures(record) else TEXTS.names[:1]
    return any(_list_pairs(record.peek(name)) for name in names)


def _list_pairs(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(isinstance(one, list) for one in value.values())
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def read_pairs(record: Fields, most_values: int) -> Conversation:
    path, value = record.taken_name(*TEXTS.names), record.take(*TEXTS.names)
    if value is None:
        raise lacks(record, TEXTS.names[0])
    return conversation(record, turns_of(value, record, path, most_values), most_values)


def has_calls(record: Fields) -> bool:
    return "query" in record and CALLS.names[0] in record and "tools" in record


def read_calls(record: Fields, most_values: int) -> Conversation:
    path = record.path(CALLS.names[0])
    asked, value = record.take("query"), record.take(*CALLS.names)
    if asked is None or value is None:
        raise lacks(record, "query" if asked is None else CALLS.names[0])
    turns = [Turn("user", "field 'query'", [text_of(asked, "field 'query'")])]
    calls = calls_of(value, record, path, f"field {path!r}", most_values)
    return conversation(record, [*turns, Turn("assistant", f"field {path!r}", calls=calls)], most_values)
