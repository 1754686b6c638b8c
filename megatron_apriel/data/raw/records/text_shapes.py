"""Records of plain text: with images and spans, a page of texts and images in turn, or a caption."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from megatron_apriel.data.raw.documents import Remarks, TextDocument
from megatron_apriel.data.raw.fields.meanings import CAPTIONS, IMAGES, POSITIONS, TEXT, TEXTS
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing, text_of
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.pictures.markers import check_markers, has_marker
from megatron_apriel.data.raw.pictures.places import (
    Pictures,
    Pieces,
    Place,
    clean_image,
    find_places,
    in_front,
    names_pictures,
    pictures_of,
    split_loose,
)
from megatron_apriel.data.raw.pictures.shown import place_shown
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.accounts import account
from megatron_apriel.data.raw.records.pair_shape import only_text
from megatron_apriel.data.raw.records.turn_shapes import lacks
from megatron_apriel.data.raw.turns.marks import check_weights, masked_spans
from megatron_apriel.data.raw.turns.rendered import check_not_rendered
from megatron_apriel.quantities import counted


def are_interleaved(record: Fields) -> bool:
    value = record.peek(TEXTS.names[0])
    return isinstance(value, list) and bool(value) and all(one is None or isinstance(one, str) for one in value)


def read_interleaved(record: Fields, most_values: int) -> TextDocument:
    """Texts and images of a page in one order: in each place either has something (OBELICS, MINT-1T)."""
    texts, name = record.take(TEXTS.names[0]), record.taken_name(*IMAGES.names[:2])
    images = record.take(*IMAGES.names[:2])
    if not isinstance(texts, list):
        raise lacks(record, TEXTS.names[0])
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


def read_text(record: Fields, most_values: int) -> TextDocument:
    name = TEXT.names[0]
    text = text_of(record.take(name) or record.peek(name), f"field {record.path(name)!r}")
    if not text.strip():
        raise BadRecord("the text is empty")
    _check_no_preference(text, record.path(name), most_values)
    pictures, masked = pictures_of(record, most_values), masked_spans(record, len(text))
    if masked is None:
        check_not_rendered(text, f"field {record.path(name)!r}")
    positions = record.take(*POSITIONS.names)
    if positions is not None:
        pieces = _at_positions(text, positions, pictures, masked)
        return _text_document(record, pieces, masked)
    pieces = [text]
    pictures = place_shown([pieces], pictures)
    if masked is None:
        split_loose([pieces], pictures)
    if len(pieces) > 1 and masked is not None:
        raise BadRecord("its text shows images, and has spans of characters, which their places would shift")
    if pictures.present and not has_marker(text) and _without_places(pieces):
        if masked:
            raise BadRecord("it has images without a place, and spans of characters that are not learned")
        pieces[:0] = in_front(len(pictures.present))
    if pictures.present and masked is not None and has_marker(text):
        raise BadRecord("it has markers of images, and spans of characters, which the markers would shift")
    find_places([pieces], pictures, markers=False)
    return _text_document(record, pieces, masked)


def _check_no_preference(text: str, path: str, most_values: int) -> None:
    """Raise BadRecord for a text that is the JSON of preference data, as RLHF-V has it."""
    if not text.lstrip().startswith("{") or '"rejected"' not in text:
        return
    try:
        value = parsed_json(text, most_values, f"field {path!r}")
    except BadRecord:
        return
    if isinstance(value, dict) and {"chosen", "rejected"} <= value.keys():
        raise BadRecord(f"field {path!r} is the JSON text of preference data, with 'chosen' and 'rejected'")


def _at_positions(text: str, positions: Any, pictures: Pictures, masked: list[tuple[int, int]] | None) -> Pieces:
    """The text with its images before the characters of those numbers; in their order, not in that of the list."""
    numbers = positions if isinstance(positions, list) else [positions]
    images = pictures.images
    if len(numbers) != len(images) or None in images:
        raise BadRecord(f"{len(numbers)} image_positions, but {counted(len(pictures.present), 'image')}")
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


def read_caption(record: Fields, most_values: int) -> TextDocument:
    pictures = pictures_of(record, most_values)
    names = (*CAPTIONS.names, *TEXT.names)  # that of a .txt beside its image is called text
    name = record.taken_name(*names)
    text = text_of(only_text(record.take(*names), name), f"field {name!r}")
    if not pictures.present:
        raise BadRecord("it has a caption and no image, as other records of its file do")
    if not text.strip():
        raise BadRecord("the caption is empty")
    pieces: Pieces = [text]
    pictures = place_shown([pieces], pictures)
    split_loose([pieces], pictures)
    if not has_marker(text) and _without_places(pieces):
        pieces[:0] = in_front(len(pictures.present))
    find_places([pieces], pictures, markers=False)
    return _text_document(record, pieces, None)


def _without_places(pieces: Pieces) -> bool:
    return not any(isinstance(piece, Place) for piece in pieces)


def has_caption(record: Fields) -> bool:
    return any(name in record for name in CAPTIONS.names) and names_pictures(record)


def _text_document(record: Fields, pieces: Pieces, masked: list[tuple[int, int]] | None) -> TextDocument:
    check_weights(record)
    images = tuple(piece.image for piece in pieces if isinstance(piece, Place) and piece.image is not None)
    if not images:
        if not any(str(piece).strip() for piece in pieces):
            raise BadRecord("the text is empty")
        for piece in pieces:
            check_first_marker(str(piece))
    parts, learned = _cut(_joined(pieces), masked or [])
    if masked is not None and not any(wanted for part, wanted in zip(parts, learned, strict=True) if part is not None):
        raise BadRecord("no word of the text is to be learned: its spans leave nothing")
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
