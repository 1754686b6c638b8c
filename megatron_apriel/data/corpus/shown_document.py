"""A document as the model sees it, for a person to read: its tokens as text again, with what is learned marked.

What a record became is not what stands in its file: the chat format wraps it, images become hundreds of tokens, earlier
reasoning is left out, control tokens in the data become characters. So nothing of the record is shown here, only what
its tokens decode to, in lines with a margin::

                | «<s>»<|user|>
                | «image of 48x64 pixels: 3 x 4 patches, 15 tokens»What is it?
                | <|end|>
                | <|assistant|>
                | Here are my reasoning steps:
    + reasoning | Whiskers.
    +           | [BEGIN FINAL RESPONSE]

The marks are characters, so that they survive a pipe; a terminal shows them in colours as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from rich.text import Text

from megatron_apriel.data.corpus.format import ImageRecord, image_block
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.errors import printable
from megatron_apriel.quantities import counted

LEGEND = "+: learned under loss: responses (loss: all learns every token but the images'); «...»: one special token"

_REASONING_BEGINS, _REASONING_ENDS = "<|assistant|>\nHere are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"


class ImageRow(Protocol):
    """What is shown of an image; :class:`~megatron_apriel.data.corpus.format.StoredImage` has it."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def start(self) -> int: ...


@dataclass(frozen=True)
class Piece:
    """Text of consecutive tokens that are alike.

    Attributes:
        text: what they decode to; of an image, what it is.
        learned: they are part of a response.
        special: it is one control token or one image, and not characters.
        reasoning: it is the reasoning of the last turn.
    """

    text: str
    learned: bool = False
    special: bool = False
    reasoning: bool = False


@dataclass(frozen=True)
class ShownDocument:
    """A document to be printed.

    Attributes:
        place: the file that its record came from.
        tokens, learned, images: how many.
        pieces: its text, in order.
    """

    place: str
    tokens: int
    learned: int
    images: int
    pieces: tuple[Piece, ...]

    def heading(self, number: int) -> str:
        """One line about the document, ``number`` counted from 1."""
        return (
            f"document {number}, from {self.place}: {counted(self.tokens, 'token')}, {self.learned:,} learned under "
            f"loss: responses, {counted(self.images, 'image')}"
        )


def shown_document(
    table: TokenTable,
    tokens: np.ndarray,
    responses: np.ndarray,
    images: Sequence[ImageRow],
    place: str,
) -> ShownDocument:
    """Decode a document.

    Args:
        table: tokenizer and ids.
        tokens: int32 [N], image tokens expanded.
        responses: bool [N].
        images: in the order of their tokens.
        place: the file that its record came from.
    """
    pieces = _with_reasoning(list(_decoded(table, tokens, responses, images)))
    return ShownDocument(place, len(tokens), int(responses.sum()), len(images), tuple(pieces))


def _decoded(
    table: TokenTable, tokens: np.ndarray, responses: np.ndarray, images: Sequence[ImageRow]
) -> Iterator[Piece]:
    done = 0
    for image in images:
        assert table.images is not None, "a document with images is of a model that sees them"
        yield from _runs(table, tokens[done : image.start], responses[done : image.start])
        yield Piece(_image_words(image, table.images), special=True)
        done = image.start + len(image_block(image.rows, image.columns, table.images))
    yield from _runs(table, tokens[done:], responses[done:])


def _image_words(image: ImageRow, record: ImageRecord) -> str:
    tokens = len(image_block(image.rows, image.columns, record))
    return f"image of {image.height}x{image.width} pixels: {image.rows} x {image.columns} patches, {tokens:,} tokens"


def _runs(table: TokenTable, tokens: np.ndarray, responses: np.ndarray) -> Iterator[Piece]:
    """Pieces of tokens without images: each special token alone, others as far as they are learned or not."""
    special = np.isin(tokens, [one for one, token in table.tokenizer.added_tokens_decoder.items() if token.special])
    cuts = special[1:] | special[:-1] | (responses[1:] != responses[:-1])
    bounds = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(tokens)] if len(tokens) else []
    for first, end in pairwise(bounds):
        yield Piece(_text(table, tokens[first:end].tolist()), bool(responses[first]), bool(special[first]))


def _text(table: TokenTable, ids: list[int]) -> str:
    """What the tokens decode to behind others: a decoder may drop a space at the very beginning."""
    tokenizer: Any = table.tokenizer
    return tokenizer.decode(
        [table.bos_id, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    ).removeprefix(tokenizer.bos_token)


def _with_reasoning(pieces: list[Piece]) -> Iterator[Piece]:
    """The same text, with what stands between the last turn's opening and its final response marked."""
    whole = "".join("\0" * len(piece.text) if piece.special else piece.text for piece in pieces)
    opening = whole.rfind(_REASONING_BEGINS)
    begin = opening + len(_REASONING_BEGINS)
    end = whole.find(_REASONING_ENDS, begin) if opening >= 0 else -1
    place = 0
    for piece in pieces:
        cuts = [min(max(cut - place, 0), len(piece.text)) for cut in (begin, end)] if end >= 0 else [0, 0]
        for text, reasoning in (
            (piece.text[: cuts[0]], False),
            (piece.text[cuts[0] : cuts[1]], True),
            (piece.text[cuts[1] :], False),
        ):
            if text:
                yield Piece(text, piece.learned, piece.special, reasoning)
        place += len(piece.text)


def lines(document: ShownDocument) -> Iterator[Text]:
    """The document's lines for a console, each behind its margin.

    A line that is learned in part is divided; what follows its first part has ``\\`` in place of ``|``.
    """
    line, state, bar = Text(), (False, False), "|"
    for piece in document.pieces:
        if (piece.learned, piece.reasoning) != state:
            if line:
                yield _with_margin(line, *state, bar)
                line, bar = Text(), "\\"
            state = piece.learned, piece.reasoning
        for number, part in enumerate([piece.text] if piece.special else piece.text.split("\n")):
            if number:
                yield _with_margin(line, *state, bar)
                line, bar = Text(), "|"
            line.append(f"«{printable(part)}»" if piece.special else printable(part), _style(piece))
    if line:
        yield _with_margin(line, *state, bar)


def _with_margin(line: Text, learned: bool, reasoning: bool, bar: str) -> Text:
    margin = f"{'+' if learned else ' '} {'reasoning' if reasoning else '':9} {bar} "
    return Text().append(margin, "dim").append_text(line)


def _style(piece: Piece) -> str:
    if piece.special:
        return "bold magenta"
    if not piece.learned:
        return "cyan dim" if piece.reasoning else "dim"
    return "cyan" if piece.reasoning else "green"
