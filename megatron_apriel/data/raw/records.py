"""Three shapes of raw record, turned into two kinds of document: plain text, or a conversation.

==================  ==================================================================================================
``text``            a string, with ``<image>`` where an image of ``images`` stands, if the record has any
``messages``        OpenAI style: role and content, content a string or parts of type text, image, image_url
``conversations``   LLaVA style: from human, gpt or system, and value with ``<image>`` where an image stands
==================  ==================================================================================================

Images are a path, a data URL, base64, raw bytes, or a dictionary of ``bytes`` and ``path`` as Parquet files have them;
in the record's ``image`` or ``images`` for markers and empty image parts, or inside the part itself. Nothing is read
or decoded here. Whatever does not fit raises BadRecord with the reason: a record is understood whole or not used.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits

FORMATS = ("messages", "conversations", "text")
"""Formats in the order in which a record's fields are looked for."""

IMAGE_MARKER = "<image>"
IMAGE_FIELDS = ("images", "image")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
REASONING_OPENING = "Here are my reasoning steps:"
RESPONSE_OPENING, RESPONSE_CLOSING = "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"
"""Tags of the chat format, in answers that were taken from a model as it wrote them."""
ROLES = ("system", "user", "assistant", "tool", "tool_result")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool_result",
    "tool_result": "tool_result",
    "observation": "tool_result",
}
"""``from`` of LLaVA-style conversations and the role that it means."""

ImageValue = str | bytes | Mapping[str, Any]
"""An image as a record gives it; ``image_sources`` turns it into bytes."""


@dataclass(frozen=True)
class TextDocument:
    """Plain text: strings, and None where the next image stands."""

    parts: tuple[str | None, ...]
    images: tuple[ImageValue, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages as the chat template reads them; an image is a part ``{"type": "image"}``, its data in ``images``."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[ImageValue, ...] = ()


def columns_of(text_field: str) -> tuple[str, ...]:
    """Fields that a record may use; readers of columns need no others."""
    return ("messages", "conversations", text_field, *IMAGE_FIELDS, "tools", "system")


def recognise(record: Mapping[str, Any], text_field: str = "text") -> str | None:
    """Which of ``FORMATS`` the record has, or None."""
    fields = {"messages": "messages", "conversations": "conversations", "text": text_field}
    return next((name for name in FORMATS if record.get(fields[name]) is not None), None)


def parse_record(
    record: Mapping[str, Any], record_format: str, text_field: str = "text", limits: ReadLimits = DEFAULT_LIMITS
) -> TextDocument | Conversation:
    """The document of a raw record.

    Args:
        record: parsed JSON object or table row.
        record_format: one of ``FORMATS``.
        text_field: name of the field that holds plain text.
        limits: on JSON texts in its fields.

    Raises:
        BadRecord: the record does not have that shape.
    """
    if record_format == "text":
        return _text_document(record, text_field)
    return _conversation(record, record_format, limits.record_values)


def _text_document(record: Mapping[str, Any], text_field: str) -> TextDocument:
    text, images = _string(record.get(text_field), f"field {text_field!r}"), _images_of(record)
    if not text.strip():
        raise BadRecord("the text is empty")
    if not images:
        return TextDocument((text,))
    document = TextDocument(tuple(_split_markers(text, lambda: None)), images)
    _check_count(document.parts.count(None), len(images))
    return document


@dataclass
class _ImageQueue:
    """The record's own images, handed out to markers and empty parts in order; parts with data add theirs."""

    waiting: deque[ImageValue]
    used: list[ImageValue] = field(default_factory=list)
    places: int = 0

    @property
    def total(self) -> int:
        return len(self.waiting) + len(self.used)

    def next(self) -> dict[str, str]:
        self.places += 1
        if self.waiting:
            self.used.append(self.waiting.popleft())
        return {"type": "image"}

    def add(self, value: ImageValue) -> dict[str, str]:
        self.places += 1
        self.used.append(value)
        return {"type": "image"}


def _conversation(record: Mapping[str, Any], record_format: str, most_values: int) -> Conversation:
    turns = record.get(record_format)
    if turns is None:
        fields = ", ".join(name for name, value in record.items() if value is not None)
        raise BadRecord(f"it has no {record_format}, as other records of its file do; its fields: {fields or 'none'}")
    if isinstance(turns, str):
        turns = parsed_json(turns, most_values, f"field {record_format!r}")
    if not isinstance(turns, list) or not turns:
        raise BadRecord(f"field {record_format!r} is not a list of turns")
    queue = _ImageQueue(deque(_images_of(record)))
    markers = record_format == "conversations" or bool(queue.waiting)
    messages = []
    if record_format == "conversations" and record.get("system"):
        messages.append({"role": "system", "content": _string(record["system"], "field 'system'")})
    for number, turn in enumerate(turns):
        where = f"turn {number + 1}"
        if not isinstance(turn, Mapping):
            raise BadRecord(f"{where} is not an object")
        message = (
            _llava_message(turn, where) if record_format == "conversations" else _message(turn, where, most_values)
        )
        message["content"] = _content(message["content"], message["role"], queue, markers, where)
        if message["role"] == "assistant" and not _response(message, where) and not message.get("tool_calls"):
            thought = message["content"].strip() or message.get("reasoning_content", "").strip()
            raise BadRecord(f"{where}: the assistant {'only thinks, and ' if thought else ''}says nothing")
        messages.append(message)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecord("no turn is the assistant's: there is nothing to learn")
    _check_count(queue.places, queue.total)
    return Conversation(tuple(messages), _tools(record.get("tools"), most_values), tuple(queue.used))


def _llava_message(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadRecord(f"{where}: unknown speaker {speaker!r}; known: {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[speaker], "content": _string(turn.get("value"), f"{where}: value")}


def _message(turn: Mapping[str, Any], where: str, most_values: int) -> dict[str, Any]:
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRecord(f"{where}: unknown role {role!r}; known: {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": role, "content": turn.get("content")}
    reasoning = next((turn[name] for name in REASONING_FIELDS if turn.get(name)), None)
    if role == "assistant" and reasoning is not None:
        message["reasoning_content"] = _string(reasoning, f"{where}: reasoning")
    if role == "assistant" and turn.get("tool_calls"):
        message["tool_calls"] = _tool_calls(turn["tool_calls"], where, most_values)
    return message


def _response(message: Mapping[str, Any], where: str) -> str:
    """What the chat template takes for the assistant's response; the content may hold its reasoning as well.

    Raises:
        BadRecord: reasoning without an end: the generation was cut off, and its thoughts would be taught as a response.
    """
    said: str = message["content"].strip()
    if message.get("reasoning_content", "").strip():
        return said
    for opening, closing in (("<think>", "</think>"), (REASONING_OPENING, RESPONSE_OPENING)):
        if said.startswith(opening) and closing not in said:
            raise BadRecord(f"{where}: reasoning opened by {opening!r} has no {closing!r}; it was cut off")
    if RESPONSE_OPENING in said and not said.startswith("<think>"):
        return said.partition(RESPONSE_OPENING)[2].partition(RESPONSE_CLOSING)[0].strip()
    before, closed, after = said.partition("</think>")
    return after.strip() if closed and (before.startswith("<think>") or "<think>" not in before) else said


def _content(content: Any, role: str, queue: _ImageQueue, markers: bool, where: str) -> Any:
    """The content as the template reads it; a list of parts only where images stand in it."""
    if content is None:
        content = ""
    if isinstance(content, str):
        text = _string(content, where)
        parts: list[Any] = list(_split_markers(text, queue.next)) if markers and role != "assistant" else [text]
    elif isinstance(content, list):
        parts = [_part(part, queue, where) for part in content]
    else:
        raise BadRecord(f"{where}: content is neither a string nor a list of parts")
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    # Neighbouring texts become one: the template joins them, and only whole control tokens are found and disarmed.
    neighbours = groupby(parts, lambda part: isinstance(part, str))
    parts = [part for text, group in neighbours for part in (["".join(group)] if text else group)]
    if role not in ("user", "tool", "tool_result"):
        raise BadRecord(f"{where}: an image in a turn of the {role}; images stand in turns of user or tool_result")
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _part(part: Any, queue: _ImageQueue, where: str) -> str | dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return _string(part.get("text"), f"{where}: text part")
    if kind not in ("image", "image_url"):
        raise BadRecord(f"{where}: a part of type {kind!r}; known: text, image, image_url")
    for name in ("image", "image_url", "url", "path", "base64", "bytes"):
        value = part.get(name)
        if value is None:
            continue
        if name == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if not isinstance(value, str | bytes | Mapping):
            raise BadRecord(f"{where}: {name} of an image part is a {type(value).__name__}")
        return queue.add(value)
    return queue.next()


def _tool_calls(calls: Any, where: str, most_values: int) -> list[dict[str, Any]]:
    if isinstance(calls, str):
        calls = parsed_json(calls, most_values, f"{where}: tool_calls")
    if not isinstance(calls, list):
        raise BadRecord(f"{where}: tool_calls is not a list")
    cleaned = []
    for call in calls:
        function = call.get("function") or call if isinstance(call, Mapping) else {}
        if not isinstance(function, Mapping):
            raise BadRecord(f"{where}: the function of a tool call is a {type(function).__name__}, not an object")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            raise BadRecord(f"{where}: a tool call without the function's name")
        parsed = arguments
        if isinstance(arguments, str):
            parsed = parsed_json(arguments, most_values, f"{where}: arguments of {name}")
        if not isinstance(parsed, Mapping):
            raise BadRecord(f"{where}: the arguments of {name} are not a JSON object")
        _check_text([name, arguments, parsed], f"{where}: the call of {name}")
        cleaned.append({"function": {"name": name, "arguments": arguments}})
    return cleaned


def _tools(tools: Any, most_values: int) -> tuple[dict[str, Any], ...]:
    if isinstance(tools, str) and tools.strip():
        tools = parsed_json(tools, most_values, "field 'tools'")
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("field 'tools' is not a list of JSON schemas")
    _check_text(tools, "field 'tools'")
    return tuple(tools)


def _images_of(record: Mapping[str, Any]) -> tuple[ImageValue, ...]:
    # Tables that unite records of several shapes have both fields, one of them empty.
    value = next((record[name] for name in IMAGE_FIELDS if record.get(name)), None)
    if value is None:
        return ()
    images = value if isinstance(value, list) else [value]
    for image in images:
        if not isinstance(image, str | bytes | Mapping):
            raise BadRecord(
                f"an image is a {type(image).__name__}; known: path, data URL, base64, bytes, bytes and path"
            )
    return tuple(images)


def _split_markers(text: str, image: Callable[[], Any]) -> Iterator[Any]:
    for index, piece in enumerate(text.split(IMAGE_MARKER)):
        if index:
            yield image()
        if piece:
            yield piece


def _check_count(places: int, images: int) -> None:
    if places != images:
        raise BadRecord(f"{places} places for images ({IMAGE_MARKER} or image parts), but {images} images")


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(
            f"{what} is a {type(value).__name__}, not a string" if value is not None else f"{what} is missing"
        )
    _check_text(value, what)
    return value


def _check_text(value: Any, what: str) -> None:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"{what} holds half of a surrogate pair, which is no character: {error}") from None
    except ValueError:
        raise BadRecord(f"{what} holds NaN or an infinity, which JSON does not have") from None
