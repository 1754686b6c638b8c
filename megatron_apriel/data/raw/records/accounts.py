"""What was left of a record once it was understood: refused where it changes the lesson, counted otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_apriel.data.raw.fields.meanings import CONVERSATIONS, MARKS, ROLE, TURN_LISTS, WEIGHTS
from megatron_apriel.data.raw.fields.ordering import check_numbered
from megatron_apriel.data.raw.fields.refused import INSIDE, refuse_known
from megatron_apriel.data.raw.fields.taken import Fields, Leftover, leaves
from megatron_apriel.data.raw.fields.value_kinds import NO, YES
from megatron_apriel.data.raw.fields.verdicts import check_verdicts
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.pictures.traces import check_captioned_address, check_traces
from megatron_apriel.data.raw.problems import PATH_CHARACTERS, BadRecord, shortened, way_out
from megatron_apriel.data.raw.reading import plain_name, words_of
from megatron_apriel.data.raw.records.context import (
    ABOUT,
    MOST_VALUES,
    TAGS,
    check_context,
    check_inside,
    is_obeyed_by_answers,
    texts_of,
)
from megatron_apriel.data.raw.turns.other_turns import check_other_turns, check_turns_inside
from megatron_apriel.data.raw.turns.reasoning import begins_with_reasoning
from megatron_apriel.data.raw.turns.tool_lists import check_no_tools

REASONS = "reasoning thinking think thought thoughts cot rationale rationales scratchpad monologue"
"""Words in the name of a text that may be the reasoning of an answer without any: then it is refused."""
_OBJECTS = frozenset(("metadata", "meta", "extra", "extra_info", "info", "attributes", "properties", "config"))
"""Fields that hold an object, or its JSON text."""
_SPEAKERS = ("user", "human", "prompter", "assistant", "gpt", "model", "bot", "system")


def account(
    record: Fields, said: Sequence[str], images: Sequence[Any], *, unreasoned: bool = False, offered: bool = False
) -> Counter[str]:
    """Paths of the fields that were not used, each with how often it stood there.

    Args:
        record: after it was read.
        said: texts of its turns, in which context that stands beside them may be found.
        images: those that the document has.
        unreasoned: whether it ends with an answer that shows no reasoning.
        offered: whether it has tools that were read.

    Raises:
        BadRecord: one of them changes the lesson.
    """
    unused: Counter[str] = Counter()
    ignored = record.reading.ignored
    has_choices, described = {"a", "b"} <= {*record.names()}, {*TAGS} <= {*record.names()}
    if said:
        check_verdicts(record, said)
    for leftover in record.leftovers():
        refuse_known(leftover, answered=bool(said))
        if leftover.level in ("record", "turn"):
            check_numbered(leftover.path, leftover.name, leftover.value, len(images))
        obeyed = is_obeyed_by_answers(leftover, has_choices) and not (described and leftover.name in TAGS)
        if said and obeyed and not leftover.counted:
            check_context(leftover, said)
        opened = _opened(leftover)
        if said and leftover.level == "record":
            check_inside(opened, said, ignored)
        if said and not offered and leftover.level == "record" and not leftover.counted:
            check_no_tools(leftover.path, leftover.value, said, ignored)
        if said and leftover.level == "record":
            check_other_turns(leftover, said)
            check_turns_inside(opened, said, ignored)
        if unreasoned and leftover.level in ("record", "turn"):
            _check_reasoning(leftover, said)
        if not said and leftover.level == "record":
            _check_alone(leftover)
        unused.update(shortened(path, PATH_CHARACTERS) for path, _, _ in leaves(leftover, ignored))
        for path, name, value in leaves(opened, ignored):
            last = name.rpartition(".")[2]  # as tables name what was inside of an object
            if path != leftover.path or last != name:
                _check_mark_inside(path, last, value)
                _check_setting_inside(path, last, value)
                inside = Leftover(leftover.level, path, last, value, leftover.counted)
                refuse_known(inside, answered=bool(said), values=INSIDE)
            check_traces(path, name, value, images, answered=bool(said))
    check_captioned_address(record, images)
    return unused


def _opened(leftover: Leftover) -> Leftover:
    """The field with an object in place of the JSON text of one, as tables keep metadata of several kinds."""
    text = leftover.value
    if leftover.name not in _OBJECTS or not isinstance(text, str) or not text.lstrip().startswith("{"):
        return leftover
    try:
        value = parsed_json(text, MOST_VALUES)
    except BadRecord:
        return leftover
    return replace(leftover, value=value) if isinstance(value, dict) else leftover


def _check_mark_inside(path: str, name: str, value: Any) -> None:
    """Refuse a mark of what is learned inside of an object, as in ``metadata.train``."""
    words = words_of(name)
    unlearned = name in (*MARKS.names, *WEIGHTS.names) and (value is False or value in NO)
    weighed = "loss" in words and not words.isdisjoint(("mask", "weight", "scale")) and value not in (1, *YES)
    if unlearned or weighed:
        raise BadRecord(f"field {path!r} says which words are learned, where it is not followed{way_out(path)}")


def _check_setting_inside(path: str, name: str, value: Any) -> None:
    """Refuse the form that an answer had to have, where a request says it in an object of its settings."""
    form = name == "type" and value in ("json_schema", "json_object") and "format" in words_of(path.split(".")[-2])
    kind = name == "response_mime_type" and value != "text/plain"
    guided = any(_plain(part).startswith("guided_") for part in path.split(".")[:-1])
    if form or kind or guided:
        raise BadRecord(f"field {path!r} is a setting that the answers obey{way_out(path)}")


def _check_alone(leftover: Leftover) -> None:
    """Refuse a text that is a turn of a conversation, or that stands beside turns nobody reads."""
    path, value = leftover.path, leftover.value
    if leftover.name in ROLE.names and isinstance(value, str) and plain_name(value) in _SPEAKERS:
        raise BadRecord(f"field {path!r} is {value!r}: the text is one turn of a conversation, and would stand alone")
    if leftover.name in (*TURN_LISTS.names, *CONVERSATIONS.names):
        return  # whoever has such a record read as a text has asked for it
    turns = value if isinstance(value, list) else []
    if turns and all(isinstance(one, Mapping) and not set(map(_plain, one)).isdisjoint(ROLE.names) for one in turns):
        raise BadRecord(f"field {path!r} holds turns that are not read beside a plain text: --map {path}=messages reads"
                        f" them{way_out(path)}")  # fmt: skip


def _plain(name: Any) -> str:
    return plain_name(str(name))


def _check_reasoning(leftover: Leftover, said: Sequence[str]) -> None:
    """Refuse a text that may be the reasoning of the answer."""
    words = words_of(leftover.name)
    named = not words.isdisjoint(REASONS.split()) and leftover.name.rpartition("_")[2] not in ABOUT.split()
    for text in texts_of(leftover):
        if not named and not begins_with_reasoning(text):
            continue
        if " " not in text.strip() or any(text.strip() in turn for turn in said):
            continue
        if not named:
            raise BadRecord(
                f"field {leftover.path!r} holds an answer with reasoning, and the one that is read has none: --map "
                f"{leftover.path}=response reads it beside a prompt{way_out(leftover.path)}"
            )
        raise BadRecord(
            f"field {leftover.path!r} may hold the reasoning of the answer, which has none: --map "
            f"{leftover.path}=reasoning reads it{way_out(leftover.path)}"
        )
