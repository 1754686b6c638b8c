"""What was left of a record once it was understood: refused where it changes the lesson, counted otherwise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from megatron_apriel.data.raw.fields import Fields, Leftover, is_nothing, leaves
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.meanings import CONVERSATIONS, MARKS, ROLE, SYSTEMS, TOOLS, TURN_LISTS, WEIGHTS
from megatron_apriel.data.raw.ordering import check_numbered
from megatron_apriel.data.raw.other_turns import check_other_turns, check_turns_inside, contents_of
from megatron_apriel.data.raw.picture_traces import check_captioned_address, check_traces
from megatron_apriel.data.raw.problems import PATH_CHARACTERS, BadRecord, shortened, way_out
from megatron_apriel.data.raw.reading import plain_name, words_of
from megatron_apriel.data.raw.reasoning import begins_with_reasoning
from megatron_apriel.data.raw.refused_fields import (
    ABOUT,
    AUTOMATIC,
    CONTEXT,
    CONTEXT_ENDINGS,
    CONTEXT_OF,
    CUT,
    DISLIKED,
    INSIDE,
    NO_CONTEXT,
    NO_ERROR,
    ORIGIN,
    REASONS,
    REFUSED,
    TAGS,
    THROWN,
    WITHOUT,
)
from megatron_apriel.data.raw.split_names import HELD_OUT, SPLIT_OF_WORD
from megatron_apriel.data.raw.tool_lists import check_no_tools
from megatron_apriel.data.raw.verdicts import check_verdicts

_CHOICE = re.compile(r"(?:option|choice|candidate|opt|op)s?_?[a-j1-9]|[a-j]")
"""A choice in a field of its own, as multiple choice sets have them (MMBench, MedMCQA)."""
_OBEYED = frozenset({*SYSTEMS.names, *TOOLS.names} - {"developer", "sys", "functions", "function", "apis"})
"""What the answers obey, inside objects that hold anything besides."""
_IDENTIFIER = re.compile(r"[\w.-]*[:_/][\w.:/-]*")
"""A text that is a name of something, as ``punctuation:no_comma``, and no instruction."""
_KIND_OF_CONSTRAINT = re.compile(r"[a-z][a-z_ ]{0,40}:[a-z_][a-z_ ]{0,60}")
"""A name of IFEval's kinds in words, as ``detectable format:number bullet lists`` (Tulu 3)."""
_API_OBJECT = re.compile(r"(?:\w+\.)*(?:completion|response|message|chunk|batch|list|run|event)s?")
"""What an answer of a server says to be, in its field ``object``."""
_YES, _NO = (True, "true", "yes", "1"), (False, "false", "no", "0")
_WORDS = {"cut": CUT, "thrown": THROWN, "disliked": DISLIKED, "not taken": "reject ignore"}
_OBJECTS = frozenset(("metadata", "meta", "extra", "extra_info", "info", "attributes", "properties", "config"))
"""Fields that hold an object, or its JSON text."""
_VALUES = 10_000
"""Most of such a text that is looked into."""
_CONTEXT_OF = [[frozenset(words.split()) for words in pair] for pair in CONTEXT_OF]
_ABOUT = frozenset((*ABOUT.split(), "name", "version", "hash")) - {"prompt", "instruction", "instructions"}
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
        obeyed = _is_obeyed_by_answers(leftover, has_choices) and not (described and leftover.name in TAGS)
        if said and obeyed and not leftover.counted:
            _check_context(leftover, said)
        opened = _opened(leftover)
        if said and leftover.level == "record":
            _check_inside(opened, said, ignored)
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
        value = parsed_json(text, _VALUES)
    except BadRecord:
        return leftover
    return replace(leftover, value=value) if isinstance(value, dict) else leftover


def refuse_known(leftover: Leftover, answered: bool = True, values: Sequence[str] = ()) -> None:
    """Raise BadRecord for a field that is known to change the lesson.

    Args:
        leftover: the field.
        answered: whether its record has turns. A text or a caption has a class, and no answer that could be bad.
        values: kinds of values of the rows that are meant; without any all.
    """
    if is_nothing(leftover.value) or leftover.counted:
        return
    words = words_of(leftover.name)
    for rule in REFUSED:
        if (rule.levels and leftover.level not in rule.levels.split()) or (values and rule.values not in values):
            continue
        named = leftover.name in rule.names.split() or not words.isdisjoint(rule.words.split())
        named = named and words.isdisjoint(rule.unless.split())
        if rule.values == "media" and not answered and leftover.name.rpartition("_")[2] in ORIGIN.split():
            continue  # what a text was taken from
        if (named or not rule.names + rule.words) and _is_meant(rule.values, leftover.value, answered):
            raise BadRecord(f"field {leftover.path!r} {rule.reason}{way_out(leftover.path)}")


def _is_meant(values: str, value: Any, answered: bool) -> bool:
    if values == "true":
        return value not in (0, False)
    if values == "error":
        word = plain_name(value.strip("<>[]() ")) if isinstance(value, str) else value
        return word not in (0, False) and word not in NO_ERROR.split()
    if values == "no success":
        return type(value) is int and not 200 <= value < 300
    if values == "denied":
        word = value.strip().lower() if isinstance(value, str) else value
        return answered and (word is False or word in ("false", "no", "incorrect", "wrong"))
    if values == "nothing":
        return answered and all(isinstance(one, int | float) and one == 0 for one in _as_list(value))
    if values == "words":
        return answered and any(isinstance(one, str) and " " in one.strip() for one in _as_list(value))
    if values == "flags":
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        return bool(inside) and all(isinstance(one, bool | int | float) for one in inside)
    if values == "switched":
        return value is not False and value not in AUTOMATIC
    if values == "set":
        return value not in WITHOUT
    if values in ("yes", "no", "cut off"):
        word = value.strip().lower() if isinstance(value, str) else value
        return word in _NO if values == "no" else word in _YES and (answered or values == "yes")
    if values == "disliked" and isinstance(value, int | float):
        return value < 0
    if words := _WORDS.get(values):
        return any(_is_word_of(one, words.split()) for one in _as_list(value))
    if values == "split":
        return isinstance(value, str) and SPLIT_OF_WORD.get(value.strip().lower()) in HELD_OUT
    if values == "pages":
        return answered and not (isinstance(value, bool | int | float) or "://" in str(value)[:32])
    if values == "marks":
        marks = _as_list(value)
        if not answered:
            return all(isinstance(mark, bool) for mark in marks)
        plain = all(isinstance(mark, bool | int | float) for mark in marks)
        return plain or (isinstance(value, str) and bool(value.strip()))
    if values == "media":
        kind_of_answer = isinstance(value, str) and _API_OBJECT.fullmatch(value) is not None
        return not (kind_of_answer or isinstance(value, bool | int | float))
    return True


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_mark_inside(path: str, name: str, value: Any) -> None:
    """Refuse a mark of what is learned inside of an object, as in ``metadata.train``."""
    words = words_of(name)
    unlearned = name in (*MARKS.names, *WEIGHTS.names) and (value is False or value in _NO)
    weighed = "loss" in words and not words.isdisjoint(("mask", "weight", "scale")) and value not in (1, *_YES)
    if unlearned or weighed:
        raise BadRecord(f"field {path!r} says which words are learned, where it is not followed{way_out(path)}")


def _check_setting_inside(path: str, name: str, value: Any) -> None:
    """Refuse the form that an answer had to have, where a request says it in an object of its settings."""
    form = name == "type" and value in ("json_schema", "json_object") and "format" in words_of(path.split(".")[-2])
    kind = name == "response_mime_type" and value != "text/plain"
    guided = any(_plain(part).startswith("guided_") for part in path.split(".")[:-1])
    if form or kind or guided:
        raise BadRecord(f"field {path!r} is a setting that the answers obey{way_out(path)}")


def _is_word_of(value: Any, words: Sequence[str]) -> bool:
    if isinstance(value, Mapping):  # {"reason": "max_output_tokens"}
        return any(_is_word_of(one, words) for one in value.values())
    return isinstance(value, str) and plain_name(value.strip()).rpartition(".")[2] in words


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


def _is_context(name: str, has_choices: bool) -> bool:
    choice = _CHOICE.fullmatch(name) is not None and (len(name) > 1 or has_choices)
    return choice or name in CONTEXT.split()


def _reads_as_context(leftover: Leftover) -> bool:
    """Whether the words of a field's name say that it is such a text, and it is no mere name and no JSON."""
    words = leftover.name.split("_")
    paired = any(not any(one.isdisjoint(words) for one in pair) for pair in _CONTEXT_OF) and words[-1] not in _ABOUT
    named = (paired or words[-1] in CONTEXT_ENDINGS.split()) and {leftover.name, *words}.isdisjoint(NO_CONTEXT.split())
    return named and any(" " in text.strip() and text.lstrip()[:1] not in ("[", "{") for text in _texts(leftover))


def _check_inside(leftover: Leftover, said: Sequence[str], ignored: frozenset[str]) -> None:
    """Refuse what the answers obey where it stands in an object of the record, as in ``metadata.system_prompt``."""
    waiting: list[tuple[str, Any]] = [(leftover.path, _as_object(leftover.value))]
    while waiting:
        path, value = waiting.pop()
        for key, one in value.items() if isinstance(value, Mapping) else ():
            inner, name = f"{path}.{key}", plain_name(str(key))
            if inner in ignored:
                continue
            if name in _OBEYED and _is_obeyed(name, one):
                ours = "tools" if name in TOOLS.names else "system"
                _check_context(Leftover("record", inner, name, one), said, f": --map {inner}={ours} reads it")
            else:
                waiting.append((inner, _as_object(one)))


def _as_object(value: Any) -> Any:
    """A value, or that of its JSON text where it may hold what the answers obey."""
    if not isinstance(value, str) or not value.lstrip().startswith("{") or not any(f'"{n}"' in value for n in _OBEYED):
        return value
    with suppress(BadRecord):
        return parsed_json(value, _VALUES)
    return value


def _is_obeyed_by_answers(leftover: Leftover, has_choices: bool) -> bool:
    if leftover.level == "turn":
        named = leftover.name in CONTEXT.split() or _reads_as_context(leftover)
        return named or (leftover.name in SYSTEMS.names and _is_obeyed(leftover.name, leftover.value))
    named = _is_context(leftover.name, has_choices) or _reads_as_context(leftover)
    return leftover.level == "record" and (named or _is_obeyed_outside(leftover))


def _is_obeyed_outside(leftover: Leftover) -> bool:
    """Whether it is a system turn, or tools, around the request of a log; answers repeat the tools of theirs."""
    if leftover.name in TOOLS.names and "." in leftover.path:
        return False
    return leftover.name in (*SYSTEMS.names, *TOOLS.names) and _is_obeyed(leftover.name, leftover.value)


def may_be_tools(value: Any) -> bool:
    """Whether a value may hold schemas of tools, and not only names."""
    listed = value if isinstance(value, list) else [value]
    return any(isinstance(one, Mapping) or str(one).lstrip()[:1] in ("{", "[") for one in listed)


def _is_obeyed(name: str, value: Any) -> bool:
    """Whether a value may be an instruction, or tools, and not only the name of one."""
    if name in TOOLS.names:
        return may_be_tools(value)
    return not isinstance(value, str) or " " in value.strip()


def _check_reasoning(leftover: Leftover, said: Sequence[str]) -> None:
    """Refuse a text that may be the reasoning of the answer."""
    words = words_of(leftover.name)
    named = not words.isdisjoint(REASONS.split()) and leftover.name.rpartition("_")[2] not in ABOUT.split()
    for text in _texts(leftover):
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


def _check_context(leftover: Leftover, said: Sequence[str], also: str = "") -> None:
    for text in contents_of(leftover.value) or _texts(leftover):
        kind = leftover.name == "constraints" and _KIND_OF_CONSTRAINT.fullmatch(text) is not None
        kind = kind or _IDENTIFIER.fullmatch(text.strip()) is not None
        if not kind and not any(text.strip() in turn for turn in said):
            raise BadRecord(
                f"field {leftover.path!r} holds a text that no turn holds: the answers may follow it, and it would be "
                f"left out{also}{way_out(leftover.path)}"
            )


def _texts(leftover: Leftover) -> list[str]:
    """All texts in a leftover."""
    texts: list[str] = []
    waiting = [value for _, _, value in leaves(leftover, frozenset())]
    while waiting:
        value = waiting.pop()
        waiting += value if isinstance(value, list) else []
        texts += [value] if isinstance(value, str) and value.strip() else []
    return texts
