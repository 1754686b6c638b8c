"""Records of logs: a request with its turns, tools and settings in one object, and the answer in another.

Gateways, clients that trace what they send, and files of batches keep them so. The request is read as the record that
it would be alone, and the answer is put behind its turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.documents import Conversation
from megatron_apriel.data.raw.fields.envelopes import is_turn
from megatron_apriel.data.raw.fields.meanings import PROMPTS, REPLIES, REQUESTS, TURN_LISTS
from megatron_apriel.data.raw.fields.taken import Fields
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversations import conversation
from megatron_apriel.data.raw.records.turn_shapes import lacks
from megatron_apriel.data.raw.turns.replies import as_object, is_turns_text, reply_in, reply_turns
from megatron_apriel.data.raw.turns.turn import Turn, pair_turns, turns_of

_AROUND = ("body", "input_body_json", "json", "json_data", "data", "request", "kwargs")
"""Fields of a request that hold it."""
_DEPTH = 4
_VALUES = 100_000
"""Most of a JSON text that is looked into to see what a record is."""


def is_exchange(record: Fields) -> bool:
    """Whether a field holds a request that can be read, and another one an answer."""
    asked = _request_name(record, _VALUES)
    return bool(asked) and bool(_reply_name(record, asked))


def read_exchange(record: Fields, most_values: int) -> Conversation:
    """The conversation of a request and its answer. Raises BadRecord."""
    asked = _request_name(record, most_values)
    reply = _reply_name(record, asked)
    if not asked or not reply:
        raise lacks(record, REPLIES.names[0] if asked else REQUESTS.names[0])
    request = _opened(record, asked, most_values)
    turns = _asked(request, most_values)
    said = reply_turns(record, reply, most_values)
    same = [one.text for one in said[: len(turns)]] == [one.text for one in turns]
    turns = said if same and len(said) > len(turns) else [*turns, *said]  # the answer may hold the turns once more
    return conversation(request, turns, most_values, whole=record)


def _request_name(record: Fields, most_values: int) -> str:
    return next((name for name in REQUESTS.names if _asks(as_object(record.peek(name), most_values))), "")


def _reply_name(record: Fields, asked: str) -> str:
    return reply_in(record, tuple(name for name in REPLIES.names if name != asked))


def _asks(value: Any, depth: int = 0) -> bool:
    """Whether an object is a request: it has turns or one prompt, or holds an object that has."""
    if not isinstance(value, Mapping) or depth > _DEPTH or is_turn(value):
        return False
    if any(isinstance(value.get(name), list) for name in TURN_LISTS.names):
        return True
    if any(isinstance(value.get(name), str | list) for name in PROMPTS.names):
        return True
    return any(_asks(as_object(value.get(name), _VALUES), depth + 1) for name in _AROUND)


def _opened(owner: Fields, name: str, most_values: int) -> Fields:
    """The request itself as a record of its own."""
    path = owner.path(name)
    value = as_object(owner.take(name), most_values)
    assert isinstance(value, Mapping), "it asks"
    request = owner.inner(value, "record", path)
    if any(one in request for one in (*TURN_LISTS.names, *PROMPTS.names)) and not _only_around(request):
        return request
    inside = next(one for one in _AROUND if _asks(as_object(request.peek(one), most_values)))
    return _opened(request, inside, most_values)


def _only_around(request: Fields) -> bool:
    return not any(isinstance(request.peek(name), str | list) for name in (*TURN_LISTS.names, *PROMPTS.names))


def _asked(request: Fields, most_values: int) -> list[Turn]:
    name = next(name for name in (*TURN_LISTS.names, *PROMPTS.names) if isinstance(request.peek(name), str | list)
                and name in request)  # fmt: skip
    path, value = request.path(name), request.take(name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # a batch of one, as LangChain keeps it
    if isinstance(value, str) and name in PROMPTS.names and not is_turns_text(value, most_values):
        return pair_turns(value, None, request, path, f"field {path!r}", most_values)[:1]
    turns = turns_of(value, request, path, most_values)
    if not turns:
        raise BadRecord(f"field {path!r} holds no turn")
    return turns
