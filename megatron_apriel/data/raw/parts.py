"""A turn's content: a text, or a list of parts as OpenAI, Anthropic, Mistral, Qwen and transformers write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.calls import Call, calls_of
from megatron_apriel.data.raw.fields import Fields, check_order, is_nothing, kind_of, text_of
from megatron_apriel.data.raw.meanings import (
    PART_CLOSED,
    PART_ID,
    PART_IMAGE,
    PART_INDEX,
    PART_ORDER,
    PART_TEXT,
    PART_THINKING,
    PART_TYPE,
)
from megatron_apriel.data.raw.pictures import Pieces, Place, clean_image, rows_of
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import words_of
from megatron_apriel.data.raw.reasoning import reasoning_text

_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image", "image_base64", "image_path", "image_file")
_THOUGHTS = ("thinking", "reasoning", "thought")
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
        results: results that are parts, with the ids of their calls.
        after: whether a text follows a part of reasoning or a call.
    """

    pieces: Pieces = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    results: list[tuple[Content, Any]] = field(default_factory=list)


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
    if kind is None:  # Qwen's: {"image": ...} or {"text": ...}
        kind = next((name for name in ("text", "image", "image_url") if name in part), None)
    if kind in _TEXTS:
        text = part.take(*PART_TEXT.names)
        _pass_over(part, PART_IMAGE.names)
        content.pieces.append(text_of("" if text is None and "text" in part.names() else text, f"{where}: text part"))
    elif kind in _IMAGES:
        content.pieces.append(_image(part, where))
    elif kind in _THOUGHTS:
        if part.take(*PART_CLOSED.names) not in (None, True):
            raise BadRecord(f"{where}: a part of reasoning that is not closed; it was cut off")
        part.take("signature", "id")
        content.thoughts.append(reasoning_text(part.take(*PART_THINKING.names), f"{where}: {kind}"))
        if any(content.pieces):
            raise BadRecord(f"{where}: a part of reasoning behind the answer's text")
    elif kind in ("tool_use", "tool_call"):
        content.calls += calls_of({**value, "type": "function"}, turn, path, where, most_values)
        for name in part.names():
            part.take(name)
    elif kind == "tool_result":
        identity = part.take(*reversed(PART_ID.names))
        inner = part.take("content", "output", "text")
        content.results.append((content_of(inner, part, part.path("content"), where, most_values), identity))
    else:
        raise BadRecord(f"{where}: a part of type {kind!r}; known: {KNOWN_PARTS}")


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
