"""Turns inside of what libraries put around them, and whose turn the envelope says it is.

LangChain writes ``{"type": "human", "data": {...}}``, or the constructor of a message with its arguments; servers write
each answer as a choice that holds a message. OpenAI's Responses lists calls, results and reasoning as items of their
own, each of a ``type``. Here the turn is taken out and its speaker found; what it holds is read as that of any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.fields.meanings import ENVELOPES, ROLE, TURN_TYPE
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing
from megatron_apriel.data.raw.reading import plain_name

CALLING = "tool_call"
"""A turn that is nothing but calls; it becomes part of a turn of the assistant."""
REASONED = "reasoning"
"""A turn that is nothing but reasoning; it becomes part of the turn of the assistant behind it."""

ROLES = {
    "user": "user human prompter questioner client",
    "assistant": "assistant gpt model bot chatgpt ai chatbot bing bard",
    "system": "system developer",
    "tool_result": "tool tool_result tool_results tool_response tool_output observation function function_response "
    "function_result function_call_output ipython environment",
    CALLING: "tool_call tool_calls function_call",
    REASONED: "reasoning thinking thought",
}
"""Our roles, and what others call them; in small letters."""

OURS = {theirs: ours for ours, names in ROLES.items() for theirs in names.split()}
_CLASS_ENDINGS = ("_chunk", "_message")  # HumanMessage, AIMessageChunk


def role_of_type(value: Any) -> str | None:
    """The role that a ``type`` or the name of a class says, or None."""
    if not isinstance(value, str):
        return None
    name = plain_name(value.strip().replace("AI", "Ai")).replace("-", "_")
    for ending in _CLASS_ENDINGS:
        name = name.removesuffix(ending)
    return OURS.get(name)


def opened(turn: Fields) -> tuple[Fields, str | None]:
    """The turn itself, and its role where the envelope or its type says it."""
    kind = turn.peek(TURN_TYPE.names[0])
    hint = role_of_type(kind)
    if kind == "message" or (hint is not None and not any(name in turn for name in ROLE.names)):
        turn.take(*TURN_TYPE.names)
    for name in ENVELOPES.names:
        value = turn.peek(name)
        if not isinstance(value, Mapping) or is_nothing(value) or "content" in turn:
            continue
        if not _is_around(name, turn.peek("id"), hint):
            continue
        if name == "kwargs":  # {"lc": 1, "type": "constructor", "id": ["langchain", ..., "HumanMessage"]}
            classes = turn.take("id")
            turn.take("lc")
            turn.take("type")
            hint = role_of_type(classes[-1]) if isinstance(classes, list) and classes else hint
        path = turn.path(name)
        inner, own = opened(turn.inner(turn.take(name), "turn", path))
        return inner, own or hint
    return turn, hint


def _is_around(name: str, identity: Any, hint: str | None) -> bool:
    """Whether an object in a field of that name is a turn: one of LangChain's, or a message."""
    return name == "message" or (isinstance(identity, list) if name == "kwargs" else hint is not None)


def is_turn(value: Any) -> bool:
    """Whether a value says itself whose turn it is."""
    if not isinstance(value, Mapping):
        return False
    named = {plain_name(str(name)): one for name, one in value.items()}
    if any(not is_nothing(named.get(name)) for name in ROLE.names[:2]):
        return True
    if isinstance(named.get("kwargs"), Mapping) and isinstance(named.get("id"), list):
        return True
    return role_of_type(named.get(TURN_TYPE.names[0])) is not None
