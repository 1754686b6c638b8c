"""Turns that stand beside those that are read, under a name that nobody reads: another version, or others.

Data sets keep the same turns in several forms, and then nothing is lost. Where the words differ, the record holds a
conversation that would not be learned: with reasoning, corrected, or from another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from megatron_apriel.data.raw.fields.envelopes import OURS
from megatron_apriel.data.raw.fields.meanings import CONTENT, ROLE
from megatron_apriel.data.raw.fields.taken import Leftover
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord, way_out
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.turns.reasoning import split_reasoning

_VALUES = 100_000
"""Most of a JSON text that is looked into."""
_ASKING = ("user", "system")
_CALL_TAGS = ("<tool_call>", "<functioncall>", "[TOOL_CALLS]")


def check_other_turns(leftover: Leftover, said: Sequence[str]) -> None:
    """Raise BadRecord for a field of turns with words that the turns that were read do not have.

    Args:
        leftover: a field of a record that nobody took.
        said: texts of the turns that were read.
    """
    for text in contents_of(leftover.value):
        answer = text
        with suppress(BadRecord):
            answer = split_reasoning(text, "")[1]
        for tag in _CALL_TAGS:
            answer = answer.partition(tag)[0]
        if not any(one.strip() in turn for turn in said for one in (text, answer)):
            raise BadRecord(
                f"field {leftover.path!r} holds other turns than those that are read: --map {leftover.path}=messages "
                f"reads them; --ignore {leftover.path} reads on without them"
            )


def check_turns_inside(leftover: Leftover, said: Sequence[str], ignored: frozenset[str]) -> None:
    """Raise BadRecord for an object that holds the turns that were read with a system turn which those do not have.

    So tools that make data keep what they asked, as distilabel in its metadata.

    Args:
        leftover: a field of a record that nobody took.
        said: texts of the turns that were read.
        ignored: paths of fields that are as if they were not there.
    """
    waiting: list[tuple[str, Any]] = [(leftover.path, leftover.value)] if isinstance(leftover.value, Mapping) else []
    while waiting:
        path, value = waiting.pop()
        if path in ignored:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{name}", one) for name, one in value.items()]
            continue
        turns = [_plain(one) for one in _as_list(value) if isinstance(one, Mapping)]
        by_role = {kind: [text for one in turns if _speaks(one, kind) for text in _said(one)] for kind in _ASKING}
        asked, told = (by_role[kind] for kind in _ASKING)
        if asked and all(_is_held(text, said) for text in asked) and not all(_is_held(text, said) for text in told):
            raise BadRecord(
                f"field {path!r} holds a system turn before the same question, which no turn holds: the answer may "
                f"follow it, and it would be left out{way_out(path)}"
            )


def _speaks(turn: Mapping[str, Any], kind: str) -> bool:
    return any(isinstance(role := turn.get(name), str) and OURS.get(role.lower()) == kind for name in ROLE.names)


def _said(turn: Mapping[str, Any]) -> list[str]:
    return [value for name in CONTENT.names if isinstance(value := turn.get(name), str) and value.strip()]


def _is_held(text: str, said: Sequence[str]) -> bool:
    return any(text.strip() in turn for turn in said)


def contents_of(value: Any) -> list[str]:
    """The texts of a value that is nothing but turns: a list of them, a list of such lists, or the JSON text of one."""
    return list(_contents(_as_list(value)))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(BadRecord):
            value = parsed_json(value, _VALUES)
    return value if isinstance(value, list) else []


def _contents(turns: list[Any]) -> Iterator[str]:
    """The texts of turns: of objects that say who speaks, all of them, or of lists of such objects."""
    if turns and all(isinstance(one, list) for one in turns):
        for inner in turns:
            yield from _contents(inner)
    named = [_plain(one) for one in turns if isinstance(one, Mapping)]
    if len(named) != len(turns) or not all(any(isinstance(one.get(role), str) for role in ROLE.names) for one in named):
        return
    for one in named:
        yield from _said(one)


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {plain_name(str(name)): one for name, one in value.items()}
