"""Turns that stand beside those that are read, under a name that nobody reads: another version, or others.

Data sets keep the same turns in several forms, and then nothing is lost. Where the words differ, the record holds a
conversation that would not be learned: with reasoning, corrected, or from another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from megatron_apriel.data.raw.fields import Leftover
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.meanings import CONTENT, ROLE
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.reasoning import split_reasoning

_VALUES = 100_000
"""Most of a JSON text that is looked into."""
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
        yield from (value for name in CONTENT.names if isinstance(value := one.get(name), str) and value.strip())


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {plain_name(str(name)): one for name, one in value.items()}
