"""A turn's content: a text, or a list of parts as OpenAI, Anthropic, Mistral, Qwen and transformers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.fields.meanings import (
    IMAGE_FORM,
    PART_CLOSED,
    PART_ID,
    PART_IMAGE,
    PART_INDEX,
    PART_INSIDE,
    PART_JSON,
    PART_NAME,
    PART_ORDER,
    PART_RESULT,
    PART_TEXT,
    PART_THINKING,
    PART_THOUGHT,
    PART_TYPE,
)
from megatron_apriel.data.raw.fields.ordering import check_order
from megatron_apriel.data.raw.fields.taken import Fields, check_text, is_nothing, kind_of, text_of
from megatron_apriel.data.raw.pictures.places import Pieces, Place, clean_image, is_image_form, rows_of
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name, words_of
from megatron_apriel.data.raw.turns.calls import Call, call_of
from megatron_apriel.data.raw.turns.reasoning import reasoning_text

_TEXTS = ("text", "input_text", "output_text", "error_text")
_IMAGES = ("image", "image_url", "input_image", "image_base64", "image_path", "image_file", "inline_data", "file_data")
_THOUGHTS = ("thinking", "reasoning", "thought", "reasoning_content")
_CALLS = ("tool_use", "tool_call", "function_call")
_RESULTS = ("tool_result", "tool_call_response", "function_response")
_NOTHING = ("step_start", "cache_point")
"""Parts that hold nothing: Vercel's and Bedrock's."""
_UNTYPED = ("text", "image", "image_url", "inline_data", "file_data", "tool_use", "tool_result", "function_call",
            "function_response", "reasoning_content", "json", "cache_point")  # fmt: skip
"""Names by which parts without a type are known, as Qwen, Gemini and Bedrock write them."""
_NAMING = frozenset(("id", "ref", "name", "number", "key"))
"""Words of fields that say which image is meant, in ways that are not followed."""
KNOWN_PARTS = "text, image, image_url, thinking, tool_use, tool_result"


@dataclass
class Content:
    """What stands in a turn's content.

    Attributes:
        pieces: texts, and places for images.
        thoughts: reasoning that has parts of its own.
        calls: tool calls that are parts.
        results: results that are parts, with the ids of their calls and the names of their functions.
    """

    pieces: Pieces = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    results: list[tuple[Content, Any, Any]] = field(default_factory=list)


def content_of(value: Any, turn: Fields, path: str, where: str, most_values: int) -> Content:
    """The content of a turn, or of a result in it. Raises BadRecord."""
    content = Content()
    if is_nothing(value):
        return content
    if isinstance(value, Mapping):
        value = rows_of(value) or [value]
    if isinstance(value, str):
        content.pieces.append(text_of(value, where))
    elif isinstance(value, list):
        check_order(turn.kept(value, path), path, PART_ORDER.names)
        for part in value:
            _read_part(part, content, turn, path, where, most_values)
    else:
        raise BadRecord(f"{where}: content is neither a string nor a list of parts, but {kind_of(value)}")
    return content


def _read_part(value: Any, content: Content, turn: Fields, path: str, where: str, most_values: int) -> None:
    if isinstance(value, str):
        content.pieces.append(text_of(value, f"{where}: text part"))
        return
    if not isinstance(value, Mapping):
        raise BadRecord(f"{where}: a part of type {type(value).__name__!r}; known: {KNOWN_PARTS}")
    part = turn.inner(value, "part", path)
    kind = part.take(*PART_TYPE.names)
    if kind is None:
        kind = next((name for name in _UNTYPED if name in part), None)
    elif isinstance(kind, str):
        kind = plain_name(kind)
    if kind in _TEXTS:
        text = part.take(*PART_TEXT.names)
        text = text_of("" if text is None and "text" in part.names() else text, f"{where}: text part")
        _pass_over(part, PART_IMAGE.names)
        if part.peek(PART_THOUGHT.names[0]) is True and part.take(*PART_THOUGHT.names):
            _add_thought(text, content, where)
        else:
            content.pieces.append(text)
    elif kind in _IMAGES or (kind == "file" and _is_picture(part)):
        content.pieces.append(_image(part, where))
    elif kind in _THOUGHTS:
        part = _inside(part, kind)
        if part.take(*PART_CLOSED.names) not in (None, True):
            raise BadRecord(f"{where}: a part of reasoning that is not closed; it was cut off")
        part.take("signature", "id")
        _add_thought(reasoning_text(part.take(*PART_THINKING.names), f"{where}: {kind}"), content, where)
    elif kind in _CALLS:
        inside = part.peek(kind)
        wrapped = isinstance(inside, Mapping)
        call = part.inner(inside if wrapped else value, "call", part.path(kind) if wrapped else path)
        for name in (kind,) if wrapped else part.names():
            part.take(name)
        content.calls.append(call_of(call, where, most_values))
    elif kind in _RESULTS:
        part = _inside(part, kind)
        identity, function = part.take(*reversed(PART_ID.names)), part.take(*PART_NAME.names)
        name = part.taken_name(*PART_RESULT.names)
        inner = as_text(part.take(*PART_RESULT.names))
        content.results.append((content_of(inner, part, name, where, most_values), identity, function))
    elif kind == "json":
        value = part.take(*PART_JSON.names)
        check_text(value, "a tool's result")
        content.pieces.append(json.dumps(value, ensure_ascii=False))
    elif kind in _NOTHING:
        part.take(kind)
    else:
        named = "" if kind else f", of the fields {', '.join(part.names())}"
        raise BadRecord(f"{where}: a part of type {kind!r}{named}; known: {KNOWN_PARTS}")


def _inside(part: Fields, kind: str) -> Fields:
    """The object in a part of Gemini's or Bedrock's that holds what others have in the part itself."""
    if kind not in PART_INSIDE.names or not isinstance(part.peek(kind), Mapping):
        return part
    path = part.path(kind)
    return part.inner(part.take(kind), "part", path)


def _add_thought(text: str, content: Content, where: str) -> None:
    content.thoughts.append(text)
    if any(content.pieces):
        raise BadRecord(f"{where}: a part of reasoning behind the answer's text")


def _is_picture(part: Fields) -> bool:
    kinds = (part.peek(name) for name in IMAGE_FORM.names)
    return any(isinstance(kind, str) and kind.startswith("image/") for kind in kinds)


def as_text(value: Any) -> Any:
    """A result that is a value, not a text: its JSON. A list of parts, or one part, stays what it is."""
    values = value if isinstance(value, list) else [value]
    parts = any(isinstance(one, str) or (isinstance(one, Mapping) and _is_part(one)) for one in values)
    if value is None or parts or not values:
        return value
    check_text(value, "a tool's result")
    return json.dumps(value, ensure_ascii=False)


def _is_part(value: Mapping[Any, Any]) -> bool:
    names = {plain_name(str(name)) for name in value}
    return not names.isdisjoint(PART_TYPE.names) or (bool(names) and names <= {*_UNTYPED, *PART_TEXT.names})


def _image(part: Fields, where: str) -> Place:
    place = Place()
    for name in PART_IMAGE.names:
        value = part.take(name)
        if value is None:
            continue
        if not isinstance(value, str | bytes | Mapping):
            raise BadRecord(f"{where}: {name} of an image part is {kind_of(value)}")
        place.image = clean_image(value, part, part.path(name))
        break
    _pass_over(part, (*PART_IMAGE.names, *PART_TEXT.names))
    for name in IMAGE_FORM.names:
        if is_image_form(part.peek(name)):
            part.take(name)
    index = part.take(*PART_INDEX.names)
    if index is not None and place.image is None:
        if isinstance(index, float) and index.is_integer():
            index = int(index)  # a column of numbers in which others are empty
        elif isinstance(index, str) and index.isdecimal():
            index = int(index)
        if type(index) is not int:
            raise BadRecord(f"{where}: index of an image part is {kind_of(index)}, not a number")
        place.index = index
    elif index is not None:
        raise BadRecord(f"{where}: an image part has an image and an index as well")
    if place.image is None and place.index is None:
        for name in part.names():
            if name in part and not _NAMING.isdisjoint(words_of(name)):
                raise BadRecord(f"{where}: {name}={part.peek(name)!r} of an image part names an image that is not here")
    return place


def _pass_over(part: Fields, names: tuple[str, ...]) -> None:
    """Take those of the fields that say nothing: tables have the fields of all parts in each."""
    for name in names:
        if name not in part:
            part.take(name)
