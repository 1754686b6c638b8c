"""The shapes in which records are published, and how each becomes a document.

One table, :data:`SHAPES`: reading, ``--format``, help and docs take their list from it. A record has the first shape of
the table whose fields it has; a file has the shape of its first record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from megatron_apriel.data.raw.accounts import account
from megatron_apriel.data.raw.calls import calls_of
from megatron_apriel.data.raw.conversations import conversation
from megatron_apriel.data.raw.documents import Conversation, Remarks, TextDocument
from megatron_apriel.data.raw.fields import Fields, is_nothing, text_of
from megatron_apriel.data.raw.marks import check_weights, masked_spans
from megatron_apriel.data.raw.meanings import (
    ASKED,
    CALLS,
    CAPTIONS,
    CONVERSATIONS,
    HISTORY,
    IMAGES,
    POSITIONS,
    PROMPT_INPUT,
    PROMPTS,
    ROLE,
    SAID,
    TEXT,
    TEXTS,
    TURN_LISTS,
)
from megatron_apriel.data.raw.parts import content_of
from megatron_apriel.data.raw.pictures import (
    Pictures,
    Pieces,
    Place,
    check_markers,
    clean_image,
    find_places,
    has_marker,
    in_front,
    pictures_of,
)
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.turns import Turn, pair_turns, turns_of

Document = TextDocument | Conversation


@dataclass(frozen=True)
class Shape:
    """A published shape of record.

    Attributes:
        name: of ``--format``, and in the summary.
        example: one record, as JSON.
        published: who publishes records of it.
        fits: whether a record has its fields.
        read: the document of a record; the number is the most values of a JSON text in it.
    """

    name: str
    example: str
    published: str
    fits: Callable[[Fields], bool]
    read: Callable[[Fields, int], Document]


def _list_of(names: tuple[str, ...]) -> Callable[[Fields], bool]:
    """Whether the first of the names is there, or another one with what can be nothing but turns."""

    def fits(record: Fields) -> bool:
        return record.peek(names[0]) is not None or any(_are_turns(record.peek(name)) for name in names[1:])

    return fits


def _are_turns(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    if isinstance(value, dict):
        return bool(value) and all(isinstance(one, list) for one in value.values()) and _is_turn(value)
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, dict) and _is_turn(one) for one in value) or (
        len(value) > 1 and all(isinstance(one, str) for one in value)
    )


def _is_turn(value: dict[Any, Any]) -> bool:
    names = {plain_name(str(name)) for name in value}
    return bool(names & set(ROLE.names)) or (bool(names & set(ASKED.names)) and bool(names & set(SAID.names)))


def _read_turns(names: tuple[str, ...], *, markers: bool) -> Callable[[Fields, int], Document]:
    def read(record: Fields, most_values: int) -> Document:
        name = next((name for name in names if _are_turns(record.peek(name))), names[0])
        value = record.take(name)
        if value is None and record.peek(name) is None:
            raise _lacks(record, name)
        return conversation(
            record, turns_of(value, record, record.path(name), most_values), most_values, markers=markers
        )

    return read


def _lacks(record: Fields, name: str) -> BadRecord:
    present = ", ".join(one for one in record.names() if record.peek(one) is not None)
    return BadRecord(f"it has no {name}, as other records of its file do; its fields: {present or 'none'}")


def _texts_of(record: Fields) -> Any:
    return record.peek(TEXTS.names[0])


def _are_pairs(record: Fields) -> bool:
    value = _texts_of(record)
    if isinstance(value, dict):
        return bool(value) and all(isinstance(one, list) for one in value.values())
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _are_interleaved(record: Fields) -> bool:
    value = _texts_of(record)
    return isinstance(value, list) and bool(value) and all(one is None or isinstance(one, str) for one in value)


def _read_pairs(record: Fields, most_values: int) -> Document:
    value = record.take(*TEXTS.names)
    if value is None:
        raise _lacks(record, TEXTS.names[0])
    return conversation(record, turns_of(value, record, record.path("texts"), most_values), most_values)


def _read_interleaved(record: Fields, most_values: int) -> Document:
    """Texts and images of a page in one order: in each place either has something (OBELICS, MINT-1T)."""
    texts, name = record.take(*TEXTS.names), record.taken_name(*IMAGES.names[:2])
    images = record.take(*IMAGES.names[:2])
    if not isinstance(texts, list):
        raise _lacks(record, TEXTS.names[0])
    images = [None] * len(texts) if images is None else images
    if not isinstance(images, list) or len(images) != len(texts):
        raise BadRecord(f"fields 'texts' and {name!r} are not lists of one length, so places are not known")
    pieces: Pieces = []
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        picture = clean_image(image, record, name)
        if picture is not None and not is_nothing(text):
            raise BadRecord(f"place {number} has a text and an image, and none of them is first")
        if picture is not None:
            pieces.append(Place(picture))
        elif not is_nothing(text):
            before = "\n\n" if pieces and isinstance(pieces[-1], str) else ""
            pieces.append(before + text_of(text, f"field 'texts': place {number}"))
    return _text_document(record, pieces, None)


_PAIRS = {
    "instruction": ("output", "response", "completion", "answer"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("attempt", "deepseek_attempt", "response", "answer", "completion", "output", "solution"),
    "query": ("response", "answer", "output", "completion"),
    "problem": ("deepseek_solution", "solution", "response", "answer", "output", "completion"),
    "input": ("output", "response", "completion"),
    "inputs": ("targets",),
    "user": ("assistant",),
    "human": ("assistant", "gpt"),
}
"""For each name of a prompt, the names that its answer may have."""


def _pair_of(record: Fields) -> tuple[str, str] | None:
    for prompt in PROMPTS.names:
        if not isinstance(record.peek(prompt), str | list | dict) or prompt not in record:
            continue
        for answer in _PAIRS[prompt]:
            value = record.peek(answer)
            if answer in record and isinstance(value, str | list | dict):
                return prompt, answer
    return None


def _read_pair(record: Fields, most_values: int) -> Document:
    names = _pair_of(record)
    if names is None:
        raise BadRecord(
            "it has no prompt and answer, as other records of its file do; its fields: "
            + (", ".join(name for name in record.names() if name in record) or "none")
        )
    prompt, answer = names
    turns = _history(record, most_values)
    turns += _asked(record, prompt, most_values)
    said, path = record.take(answer), record.path(answer)
    if _is_list_of_turns(said):
        turns += turns_of(said, record, path, most_values)
    else:
        turns += pair_turns(None, _only(said, path), record, path, "the answer", most_values)
    return conversation(record, turns, most_values)


def _asked(record: Fields, prompt: str, most_values: int) -> list[Turn]:
    value, path = record.take(prompt), record.path(prompt)
    if _is_list_of_turns(value):
        return turns_of(value, record, path, most_values)
    extra = ""
    if prompt in ("instruction", "prompt"):
        extra = text_of(record.take(*PROMPT_INPUT.names) or "", f"field {record.taken_name(*PROMPT_INPUT.names)!r}")
    content = content_of(_only(value, path), record, path, f"field {path!r}", most_values)
    if extra.strip():
        content.pieces.append("\n" + extra)
    return [Turn("user", f"field {path!r}", content.pieces)]


def _history(record: Fields, most_values: int) -> list[Turn]:
    path, value = record.path(HISTORY.names[0]), record.take(*HISTORY.names)
    return [] if value is None else turns_of(value, record, path, most_values)


def _is_list_of_turns(value: Any) -> bool:
    rows = value if isinstance(value, list) else [value]
    return bool(rows) and all(isinstance(one, dict) and ({"role", "from"} & one.keys()) for one in rows)


def _only(value: Any, path: str) -> Any:
    """The text of a list of one text."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        if len(value) > 1:
            raise BadRecord(f"field {path!r} is a list of {len(value)} texts, and none of them is the one to learn")
        return value[0]
    return value


def _has_calls(record: Fields) -> bool:
    return "query" in record and CALLS.names[0] in record and "tools" in record


def _read_calls(record: Fields, most_values: int) -> Document:
    path = record.path(CALLS.names[0])
    asked, value = record.take("query"), record.take(*CALLS.names)
    if asked is None or value is None:
        raise _lacks(record, "query" if asked is None else CALLS.names[0])
    turns = [Turn("user", "field 'query'", [text_of(asked, "field 'query'")])]
    calls = calls_of(value, record, path, f"field {path!r}", most_values)
    return conversation(record, [*turns, Turn("assistant", f"field {path!r}", calls=calls)], most_values)


def _read_text(record: Fields, most_values: int) -> Document:
    name = TEXT.names[0]
    text = text_of(record.take(name) or record.peek(name), f"field {record.path(name)!r}")
    if not text.strip():
        raise BadRecord("the text is empty")
    pictures, masked = pictures_of(record, most_values), masked_spans(record, len(text))
    positions = record.take(*POSITIONS.names)
    if positions is not None:
        pieces = _at_positions(text, positions, pictures, masked)
        return _text_document(record, pieces, masked)
    pieces = [text]
    if pictures.present and not has_marker(text):
        if masked:
            raise BadRecord("it has images without a place, and spans of characters that are not learned")
        pieces[:0] = in_front(len(pictures.present))
    if pictures.present and masked is not None and has_marker(text):
        raise BadRecord("it has markers of images, and spans of characters, which the markers would shift")
    find_places([pieces], pictures, markers=False)
    return _text_document(record, pieces, masked)


def _at_positions(text: str, positions: Any, pictures: Pictures, masked: list[tuple[int, int]] | None) -> Pieces:
    """The text with its images before the characters of those numbers; in their order, not in that of the list."""
    numbers = positions if isinstance(positions, list) else [positions]
    images = pictures.images
    if len(numbers) != len(images) or None in images:
        raise BadRecord(f"{len(numbers)} image_positions, but {len(pictures.present)} images")
    if not all(type(one) is int and 0 <= one <= len(text) for one in numbers):
        raise BadRecord(f"image_positions are not numbers from 0 to {len(text):,}, the characters of the text")
    for begin, end in masked or ():
        if any(begin < one < end for one in numbers):
            raise BadRecord("an image stands inside of a span that is not learned")
    pieces: Pieces = []
    done = 0
    for number, image in sorted(zip(numbers, images, strict=True), key=lambda pair: pair[0]):
        pieces += [text[done:number], Place(image)]
        done = number
    return [piece for piece in [*pieces, text[done:]] if piece != ""]


def _read_caption(record: Fields, most_values: int) -> Document:
    pictures = pictures_of(record, most_values)
    name = record.taken_name(*CAPTIONS.names)
    text = text_of(_only(record.take(*CAPTIONS.names), name), f"field {name!r}")
    if not pictures.present:
        raise BadRecord("it has a caption and no image, as other records of its file do")
    if not text.strip():
        raise BadRecord("the caption is empty")
    pieces: Pieces = [text] if has_marker(text) else [*in_front(len(pictures.present)), text]
    find_places([pieces], pictures, markers=False)
    return _text_document(record, pieces, None)


def _has_caption(record: Fields) -> bool:
    return any(name in record for name in CAPTIONS.names) and bool(pictures_of(record.again(), 1000).present)


def _text_document(record: Fields, pieces: Pieces, masked: list[tuple[int, int]] | None) -> TextDocument:
    check_weights(record)
    images = tuple(piece.image for piece in pieces if isinstance(piece, Place) and piece.image is not None)
    if not images:
        if not any(str(piece).strip() for piece in pieces):
            raise BadRecord("the text is empty")
        for piece in pieces:
            check_first_marker(str(piece))
    parts, learned = _cut(_joined(pieces), masked or [])
    return TextDocument(
        parts,
        images,
        learned if masked is not None else None,
        Remarks(account(record, (), images), marked=masked is not None),
    )


def check_first_marker(text: str) -> None:
    """Raise BadRecord for a plain text that begins with the marker of an image that it does not have."""
    if text.lstrip().startswith("<image>"):
        check_markers("<image>", "the text", pictures=False)


def _joined(pieces: Pieces) -> Pieces:
    """The pieces with neighbouring texts as one: they are tokenised together."""
    result: Pieces = []
    for piece in pieces:
        if isinstance(piece, str) and result and isinstance(result[-1], str):
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _cut(pieces: Pieces, masked: list[tuple[int, int]]) -> tuple[tuple[str | None, ...], tuple[bool, ...]]:
    """The pieces cut where learning begins and ends, as Fast-LLM's tokenizer does, and whether each is learned."""
    parts: list[str | None] = []
    learned: list[bool] = []
    place = 0
    for piece in pieces:
        if isinstance(piece, Place):
            parts.append(None)
            learned.append(False)
            continue
        edges = sorted(
            {0, len(piece), *(edge - place for span in masked for edge in span if 0 < edge - place < len(piece))}
        )
        for begin, end in pairwise(edges):
            parts.append(piece[begin:end])
            learned.append(not any(first <= place + begin < last for first, last in masked))
        place += len(piece)
    return tuple(parts), tuple(learned)


SHAPES = (
    Shape(
        "messages",
        '{"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]}',
        "OpenAI, TRL, ms-swift, UltraChat, NuminaMath, SmolTalk",
        _list_of(TURN_LISTS.names),
        _read_turns(TURN_LISTS.names, markers=False),
    ),
    Shape(
        "conversations",
        '{"conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
        '{"from": "gpt", "value": "A cat."}], "image": "cat.jpg"}',
        "LLaVA, LLaVA-OneVision, ShareGPT, OpenHermes, SlimOrca, OpenThoughts, Hermes, APIGen-MT, ToolACE",
        _list_of(CONVERSATIONS.names),
        _read_turns(CONVERSATIONS.names, markers=True),
    ),
    Shape(
        "texts",
        '{"texts": [{"user": "What is it?", "assistant": "A cat."}], "images": ["cat.jpg"]}',
        "FineVision, the Cauldron, Docmatix",
        _are_pairs,
        _read_pairs,
    ),
    Shape(
        "interleaved",
        '{"texts": ["A cat", null, "sleeps."], "images": [null, "cat.jpg", null]}',
        "OBELICS, MINT-1T, OmniCorpus",
        _are_interleaved,
        _read_interleaved,
    ),
    Shape(
        "calls",
        '{"query": "Tide?", "answers": [{"name": "tide", "arguments": {}}], "tools": [{"name": "tide"}]}',
        "xLAM, APIGen",
        _has_calls,
        _read_calls,
    ),
    Shape(
        "pair",
        '{"instruction": "Add.", "input": "6 6", "output": "12"}',
        "Alpaca, Dolly, OpenOrca, MetaMath, s1K, prompt and completion of TRL, query and response of ms-swift",
        lambda record: _pair_of(record) is not None,
        _read_pair,
    ),
    Shape(
        "text",
        '{"text": "A plain document."}',
        "FineWeb, Fast-LLM; image and text of diffusers",
        lambda record: isinstance(record.peek("text"), str),
        _read_text,
    ),
    Shape(
        "caption",
        '{"image": "cat.jpg", "caption": "A cat sleeps."}',
        "img2dataset, CC12M, image folders",
        _has_caption,
        _read_caption,
    ),
)
"""In the order in which a record's fields are looked for."""
