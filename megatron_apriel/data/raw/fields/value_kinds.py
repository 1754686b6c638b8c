"""Kinds of values for which a field is refused: what the rows of ``refused.py`` name as theirs.

Each looks at a field's value, and some also at whether its record has turns: a text or a caption has a class, and no
answer that could be bad.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.split_names import HELD_OUT, SPLIT_OF_WORD

YES, NO = (True, "true", "yes", "1"), (False, "false", "no", "0")
CUT = (
    "length max_tokens max_output_tokens max_new_tokens model_length token_limit model_context_window_exceeded "
    "incomplete content_filter content_filtered guardrail_intervened safety recitation blocklist prohibited_content "
    "spii error abort aborted cancelled canceled malformed_function_call"
)
"""Reasons for which servers end an answer that is no whole one."""
DISLIKED = "down thumbs_down thumbs_downed negative dislike disliked bad poor downvote downvoted \U0001f44e"
"""What people say of an answer that they do not like; a number below 0 says it as well."""
NO_ERROR = "none null nan n/a no ok success not_executed"
"""Words for an error that did not happen, brackets around them left out (OpenMathInstruct)."""
THROWN = (
    "reject rejected ignore ignored discard discarded skip skipped cancelled canceled fail failed failure error "
    "errored invalid incomplete incorrect wrong expired bad deleted spam declined"
)
"""What tools of annotators and logs call a record that is not to be used."""
AUTOMATIC: tuple[dict[str, Any], ...] = ({"mode": "AUTO"}, {"auto": {}})
"""Gemini's and Bedrock's choices of a tool that are no choice."""
_TEXT = {"type": "text"}
WITHOUT = (*AUTOMATIC, "auto", "text", True, "true", "medium", {"type": "auto"}, _TEXT, {"format": _TEXT})
"""Settings that say what is meant without them."""
_API_OBJECT = re.compile(r"(?:\w+\.)*(?:completion|response|message|chunk|batch|list|run|event)s?")
"""What an answer of a server says to be, in its field ``object``."""


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _is_one_of(words: str) -> Callable[[Any], bool]:
    """Of a kind that is any of these words, alone, in a list or in an object."""
    known = words.split()
    return lambda value: any(_is_word_of(one, known) for one in _as_list(value))


def _is_word_of(value: Any, words: Sequence[str]) -> bool:
    if isinstance(value, Mapping):  # {"reason": "max_output_tokens"}
        return any(_is_word_of(one, words) for one in value.values())
    return isinstance(value, str) and plain_name(value.strip()).rpartition(".")[2] in words


def _is_error(value: Any) -> bool:
    word = plain_name(value.strip("<>[]() ")) if isinstance(value, str) else value
    return word not in (0, False) and word not in NO_ERROR.split()


def _is_flags(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return bool(inside) and all(_is_number(one) for one in inside)


def _is_disliked(value: Any) -> bool:
    return value < 0 if isinstance(value, int | float) else _is_one_of(DISLIKED)(value)


def _is_held_out(value: Any) -> bool:
    return isinstance(value, str) and SPLIT_OF_WORD.get(value.strip().lower()) in HELD_OUT


def _is_media(value: Any) -> bool:
    return not (_is_number(value) or (isinstance(value, str) and _API_OBJECT.fullmatch(value) is not None))


def _is_pages(value: Any) -> bool:
    return not (_is_number(value) or "://" in str(value)[:32])


def _is_words(value: Any) -> bool:
    return any(isinstance(one, str) and " " in one.strip() for one in _as_list(value))


def _is_zero(value: Any) -> bool:
    return all(isinstance(one, int | float) and one == 0 for one in _as_list(value))


def _is_marks_of_turns(value: Any) -> bool:
    return all(map(_is_number, _as_list(value))) or (isinstance(value, str) and bool(value.strip()))


ALONE: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "true": lambda value: value not in (0, False),
    "yes": lambda value: _plain(value) in YES,
    "no": lambda value: _plain(value) in NO,
    "set": lambda value: value not in WITHOUT,
    "switched": lambda value: value is not False and value not in AUTOMATIC,
    "flags": _is_flags,
    "media": _is_media,
    "split": _is_held_out,
    "cut": _is_one_of(CUT),
    "thrown": _is_one_of(THROWN),
    "disliked": _is_disliked,
    "not taken": _is_one_of("reject ignore"),
    "error": _is_error,
    "no success": lambda value: type(value) is int and not 200 <= value < 300,
    "marks": lambda value: all(isinstance(mark, bool) for mark in _as_list(value)),
}
"""Kinds that are meant in any record.

``any``; ``true``, any but false; ``yes`` and ``no``, true and false alone, also as numbers and words; ``set``, any but
what is meant without it; ``switched``, any but false and :data:`AUTOMATIC`; ``flags``, a list or an object of true and
false or numbers; ``media``, no numbers; ``split``, the name of one that is held out; ``cut``, one of :data:`CUT`;
``thrown``, one of :data:`THROWN`; ``disliked``, one of :data:`DISLIKED` or a number below 0; ``not taken``, Prodigy's
``reject`` and ``ignore``; ``error``, any but false and words for none; ``no success``, a number that is none of 200 to
299; ``marks``, true and false.
"""
BESIDE_TURNS: dict[str, Callable[[Any], bool]] = {
    "marks": _is_marks_of_turns,
    "denied": lambda value: value is False or _plain(value) in ("false", "no", "incorrect", "wrong"),
    "cut off": lambda value: _plain(value) in YES,
    "nothing": _is_zero,
    "words": _is_words,
    "pages": _is_pages,
}
"""Kinds that are meant beside turns alone, or are another there.

``marks``, one value or a list of true, false or numbers, or a text; ``denied``, false or a word for it; ``cut off``,
true; ``nothing``, 0 alone or a list of it; ``words``, a text of several words; ``pages``, no numbers, no addresses.
"""


def is_meant(kind: str, value: Any, answered: bool) -> bool:
    """Whether a value is of a kind, in a record that has turns or has none."""
    if answered and kind in BESIDE_TURNS:
        return BESIDE_TURNS[kind](value)
    return kind in ALONE and ALONE[kind](value)
