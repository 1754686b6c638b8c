"""The records of a file that is one JSON array, as LLaVA's data is distributed, without holding the file in memory.

The arrays in a file that is one JSON object, as COCO's annotations are, are read in the same way.

Only where one element ends and the next begins is found out here; the elements go on as text, and workers parse them
like lines. Memory is bounded by the longest element. An array cannot be entered again after a damaged place, as lines
can: where it is not JSON, nothing behind that place is known, so the file as a whole is refused.

By hand and not with ``ijson``, which gives values without their places in the text: an element could not go on as it is
written, and faulty UTF-8 in one of them, or an integer of more than 64 bits, would end the file.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import deque
from collections.abc import Iterator

from megatron_apriel.data.raw.json_text import has_more_values
from megatron_apriel.data.raw.read_limits import LimitExceeded, ReadLimits
from megatron_apriel.errors import shown

_READ_BYTES = 2**20
_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]*")
_BYTE_ORDER_MARK = "\ufeff"
_LONGEST_CUT = 12
"""A token of JSON other than a string is no longer than this, so an error so near the end may come from the cut."""


class BrokenArray(ValueError):
    """The text is no JSON array; the message says what is wrong."""


def is_array(stream: io.BufferedIOBase) -> bool:
    """Whether the first character that is no white space opens an array; reads as far as that."""
    while beginning := stream.read(1024):
        text = beginning.removeprefix(codecs.BOM_UTF8).lstrip(_SPACE.encode())
        if text:
            return text.startswith(b"[")
    return False


def array_elements(stream: io.BufferedIOBase, limits: ReadLimits) -> Iterator[tuple[int, bytes]]:
    """Numbered elements from 1, each the bytes of one JSON value.

    Raises:
        BrokenArray: not JSON, cut short, or something behind the array's end.
        LimitExceeded: an element of more bytes or values than a record may have.
    """
    text = _Text(stream, limits)
    text.skip_mark()
    yield from enumerate(_elements(text), start=1)
    if not text.at_end():
        raise BrokenArray("something follows the array's end: it is neither one array nor one object a line")


def object_members(stream: io.BufferedIOBase, limits: ReadLimits) -> Iterator[tuple[str, Iterator[bytes] | bytes]]:
    """Name of each member of a file that is one JSON object, with its elements where it is an array, else its bytes.

    The elements, each the bytes of one JSON value, are those of :func:`array_elements`: they are read while they are
    taken, and passed over where the next member is asked for.

    Raises:
        BrokenArray, LimitExceeded: as of :func:`array_elements`; a member's name that is there twice.
    """
    text = _Text(stream, limits)
    text.skip_mark()
    text.take("{")
    names = set[str]()
    while not text.ahead("}"):
        if names:
            text.take(",")
        if not text.ahead('"'):
            raise BrokenArray("a name in quotes is expected")
        try:
            name = json.loads(text.value().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BrokenArray(f"a name is no UTF-8: {error}") from None
        if name in names:
            raise BrokenArray(f"{shown(name)} is there twice")
        names.add(name)
        text.take(":")
        if text.ahead("["):
            elements = _elements(text)
            yield name, elements
            deque(elements, maxlen=0)
        else:
            yield name, text.value()
    text.take("}")
    if not text.at_end():
        raise BrokenArray("something follows the object's end")


def _elements(text: _Text) -> Iterator[bytes]:
    text.take("[")
    first = True
    while not text.ahead("]"):
        if not first:
            text.take(",")
        first = False
        yield text.value()
    text.take("]")


class _Text:
    """The part of a stream's text that is being looked at, filled up as needed.

    Bytes that are not UTF-8 travel through as they are: they are the problem of the element that holds them.
    """

    def __init__(self, stream: io.BufferedIOBase, limits: ReadLimits) -> None:
        self._stream, self._limits, self._finished = stream, limits, False
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._json = json.JSONDecoder()
        self._text, self._place = "", 0
        self._aside: list[tuple[str, int]] = []  # text behind, with the place where it goes on; the nearest last

    def skip_mark(self) -> None:
        if self._fill() and self._text.startswith(_BYTE_ORDER_MARK):
            self._place = len(_BYTE_ORDER_MARK)

    def skip_space(self) -> None:
        while self._fill():
            self._place = _SPACES.match(self._text, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._text):
                return

    def at_end(self) -> bool:
        self.skip_space()
        return not self._fill()

    def ahead(self, character: str) -> bool:
        self.skip_space()
        return self._fill() and self._text[self._place] == character

    def take(self, character: str) -> None:
        if not self.ahead(character):
            found = repr(self._text[self._place]) if self._fill() else "the end of the file"
            raise BrokenArray(f"{character!r} is expected and {found} found")
        self._place += 1

    def value(self) -> bytes:
        """The next value, whole."""
        self.skip_space()
        self._set_aside()
        while True:
            try:
                _, stop = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                behind = len(self._text) - error.pos
                open_string = error.msg.startswith("Unterminated string")
                known = len(self._text) - self._place
                if (open_string or behind <= _LONGEST_CUT) and self._more():
                    self._check_values(known)
                    continue
                cut = open_string or behind <= 0
                raise BrokenArray("the file ends in the middle of a record" if cut else error.msg) from None
            except (RecursionError, ValueError) as error:  # ValueError: a number of too many digits
                raise BrokenArray(str(error)) from None
            if stop < len(self._text) or not self._more():
                element = self._text[self._place : stop]
                self._place = stop
                return element.encode("utf-8", "surrogateescape")

    def _fill(self) -> bool:
        """Whether any text is left, after reading some where none is at hand."""
        while self._place >= len(self._text) and self._more():
            pass
        return self._place < len(self._text)

    def _set_aside(self, size: int = 0) -> None:
        """Look at a value a little at a time, when the one before has brought much along; ``size`` is known of it."""
        size += _READ_BYTES
        if len(self._text) - self._place > size + _READ_BYTES:
            self._aside.append((self._text, self._place + size))
            self._text = self._text[self._place : self._place + size]
            self._place = 0

    def _check_values(self, known: int) -> None:
        """Hold the value to its limit before it is parsed; so much of the text at hand is of this value."""
        most = 2 * self._limits.record_values
        if len(self._text) > 2 * _READ_BYTES and has_more_values(self._text, most):
            if has_more_values(self._text[:known], most):
                raise LimitExceeded("a record has too many values", "--max-record")
            self._set_aside(known)  # they may be those of further values

    def _more(self) -> bool:
        """Read as much again as is at hand, so that a long value is not tried too often; whether there was any."""
        if self._finished and not self._aside:
            return False
        self._text = self._text[self._place :]
        self._place = 0
        most = self._limits.record_bytes
        if len(self._text) > most:
            raise LimitExceeded(f"a record is longer than {most:,} bytes", "--max-record")
        size = max(_READ_BYTES, min(len(self._text), most))
        if self._aside:
            text, place = self._aside.pop()
            self._text += text[place : place + size]
            if place + size < len(text):
                self._aside.append((text, place + size))
            return True
        data = self._stream.read(size)
        self._finished = not data
        self._text += self._decode(data, final=not data)
        return bool(data)
