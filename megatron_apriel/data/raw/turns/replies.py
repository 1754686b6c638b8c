"""The answer of a server out of what a log keeps of it: the text, its turn, or objects around it.

OpenAI's is a choice of a response, in a file of a batch the body of one; Gemini's is a candidate, Ollama's a message,
Anthropic's the content itself, that of Responses a list of items, LangChain's a generation. Of several answers to one
request none is the one to learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.fields.envelopes import OURS, is_turn
from megatron_apriel.data.raw.fields.meanings import CONTENT, REPLIES, TOOL_CALLS, TURN_LISTS
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.turns.turn import Turn, pair_turns, read_turn, turns_of

_AROUND = ("choices", "candidates", "generations", "message", "messages", "body", "output_body_json", "response",
           "result", "output", "outputs", "data")  # fmt: skip
"""Fields of an answer that hold it, the nearest ones first."""
_TEXTS = ("text", "output_text", "content", "answer", "response", "output", "completion")
_WHERE = "the answer"
_DEPTH = 8


def reply_in(owner: Fields, names: tuple[str, ...] = REPLIES.names) -> str:
    """The field that holds an answer, or ""."""
    return next((name for name in names if name in owner and isinstance(owner.peek(name), str | list | Mapping)), "")


def as_object(value: Any, most_values: int) -> Any:
    """A value, or that of its JSON text where that can be nothing but turns, or a request or response with them.

    Answers may be JSON themselves, so a text is looked at more closely than an object.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[{")):
        return value
    try:
        found = parsed_json(value, most_values)
    except BadRecord:
        return value
    rows = found if isinstance(found, list) else [found]
    if rows and all(map(_is_whole_turn, rows)):
        return found
    held = [found.get(name) for name in ("choices", "candidates", *TURN_LISTS.names)] if isinstance(found, dict) else []
    listed = any(isinstance(one, list) and one and all(isinstance(row, Mapping) for row in one) for one in held)
    return found if listed else value


def is_turns_text(value: Any, most_values: int) -> bool:
    """Whether a text is the JSON of turns."""
    found = as_object(value, most_values)
    return found is not value and all(map(_is_whole_turn, found if isinstance(found, list) else [found]))


def _is_whole_turn(value: Any) -> bool:
    if not isinstance(value, Mapping) or not (set(CONTENT.names) | set(TOOL_CALLS.names)) & value.keys():
        return False
    speaker = value.get("role", value.get("from"))
    return isinstance(speaker, str) and speaker.lower() in OURS


def holds_reply(value: Any, most_values: int) -> bool:
    """Whether a value is more than a text or the parts of one: a turn, a list of them, or an object around one."""
    value = as_object(value, most_values)
    if isinstance(value, list):
        return bool(value) and all(is_turn(one) or _is_choice(one) for one in value)
    return isinstance(value, Mapping) and (is_turn(value) or any(_is_around(value.get(name)) for name in _AROUND))


def reply_turns(owner: Fields, name: str, most_values: int) -> list[Turn]:
    """The turns of the answer in a field. Raises BadRecord where there is none, or more than one."""
    path, value = owner.path(name), owner.take(name)
    return _turns(value, owner, path, most_values, 0)


def _turns(value: Any, owner: Fields, path: str, most_values: int, depth: int) -> list[Turn]:
    value = as_object(value, most_values)
    if depth > _DEPTH or is_nothing(value):
        raise BadRecord(f"field {path!r} holds no answer")
    if isinstance(value, str):
        return pair_turns(None, value, owner, path, _WHERE, most_values)
    if isinstance(value, list):
        if all(map(is_turn, value)):
            return turns_of(value, owner, path, most_values)
        if len(value) > 1:
            raise BadRecord(f"field {path!r} holds {len(value)} answers, and none of them is the one to learn")
        return _turns(value[0], owner, path, most_values, depth + 1)
    if not isinstance(value, Mapping):
        raise BadRecord(f"field {path!r} holds no answer")
    if is_turn(value):
        return read_turn(owner.inner(value, "turn", path), _WHERE, most_values)
    inner = owner.inner(value, "record", path)
    for name in _AROUND:
        if _is_around(as_object(inner.peek(name), most_values)):
            return _turns(inner.take(name), inner, inner.path(name), most_values, depth + 1)
    if isinstance(inner.peek("content"), Mapping):  # Gemini's candidate
        return _turns(inner.take("content"), inner, inner.path("content"), most_values, depth + 1)
    if isinstance(inner.peek("content"), list) or isinstance(inner.peek("parts"), list):
        return read_turn(owner.inner(value, "turn", path), _WHERE, most_values, "assistant")
    texts = [name for name in _TEXTS if isinstance(inner.peek(name), str) and name in inner]
    if len(texts) != 1:
        raise BadRecord(f"field {path!r} holds no answer that is known, but {', '.join(inner.names()) or 'nothing'}")
    return pair_turns(None, inner.take(texts[0]), inner, inner.path(texts[0]), _WHERE, most_values)


def _is_around(value: Any) -> bool:
    return isinstance(value, Mapping | list) and not is_nothing(value) and not _is_text(value)


def _is_text(value: Any) -> bool:
    """Whether a value is a list of texts: choices of a question, and no answers."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_choice(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_choice, value))
    return isinstance(value, Mapping) and (
        isinstance(value.get("message"), Mapping) or ("text" in value and "type" not in value and len(value) > 1)
    )
