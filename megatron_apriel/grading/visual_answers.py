"""Answers to the visual tasks: a letter, yes or no, a number, a cell of a grid, an order of pieces.

The questions ask for the answer alone, so a short form is expected, and a sentence around it is allowed. Where a
response names several answers, the one in its last box or behind its last "answer is" counts, and of several there the
one before the first bracket, colon or end of a sentence; else there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.numbers import numeral_in
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_LETTER = re.compile(r"(?<![\w'])([A-H])(?![\w'])")
_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w]|\.\d)", re.ASCII)
_ROW, _COLUMN = r"\brow\s*[:=#]?\s*(\d+)", r"\bcol(?:umn)?\s*[:=#]?\s*(\d+)"
_BETWEEN = r"\W{1,4}(?:and\s+)?(?:in\s+)?(?:the\s+)?"
_CELL = re.compile(f"{_ROW}{_BETWEEN}{_COLUMN}\\b", re.IGNORECASE | re.ASCII)
_CELL_BY_COLUMN = re.compile(f"{_COLUMN}{_BETWEEN}{_ROW}\\b", re.IGNORECASE | re.ASCII)
_CELL_SHORT = re.compile(r"\br(\d+) ?,? ?c(\d+)\b", re.IGNORECASE | re.ASCII)
_CELL_BY_ORDER = re.compile(r"\b(\w+) row\W{1,4}(?:and\s+)?(?:in\s+)?(?:the\s+)?(\w+) col(?:umn)?\b", re.IGNORECASE)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_WHOLE = re.compile(r"(?<=\d)\.0+(?![\d.])|(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
"""What changes nothing in a whole number: decimals that are zero, and commas between thousands."""
_ALONE = " \t\r\n*_`().:"
_FIRST_PART = re.compile(r"[(;:]|\.(?!\d)")


def grade_visual_answer(response: str, answer: Any) -> Verdict:
    """Compare the answer in a response with the one that the task's maker recorded.

    Args:
        response: the final response.
        answer: as in the record: a letter, a truth, a number, two of a cell, or an order of at least three pieces.
    """
    read = _reader(answer)
    if read is None:
        return bad_item(f"{answer!r} is no answer of a visual task")
    found = read(response)
    if found is None and (final := final_answer(response)) is not None:
        found = read(final)
        if found is None:
            found = read(_FIRST_PART.split(final, maxsplit=1)[0])
    if found is None:
        return without_answer("it names none, or several")
    return compared(found == answer, str(found), str(answer))


def _reader(answer: Any) -> Callable[[str], Any] | None:
    if isinstance(answer, bool):
        return lambda text: _only(word.lower() == "yes" for word in _YES_OR_NO.findall(text))
    if isinstance(answer, int):
        return _number
    if isinstance(answer, str) and _LETTER.fullmatch(answer):
        return _letter
    if isinstance(answer, list) and all(type(number) is int for number in answer):
        if len(answer) == 2:
            return lambda text: _only([int(row), int(column)] for row, column in _cells(text))
        if len(answer) > 2:
            return lambda text: _order(text, len(answer))
    return None


def _letter(text: str) -> str | None:
    alone = text.strip(_ALONE).upper()
    return alone if _LETTER.fullmatch(alone) else _only(_LETTER.findall(text))


def _number(text: str) -> int | None:
    """The only number; of an equation its result; where no digits stand, the number that is written as a word."""
    text = _WHOLE.sub("", text)
    for part in (text, text.rpartition("=")[2]):
        found: int | None = _only(int(number) for number in _NUMBER.findall(part) if len(number) < 10)
        if found is not None:
            return found
    return numeral_in(text)


def _cells(text: str) -> list[tuple[str, str]]:
    text = text.replace("*", "")
    named = _CELL.findall(text) or [(row, column) for column, row in _CELL_BY_COLUMN.findall(text)]
    named = named or _CELL_SHORT.findall(text) or list(_ordered(text))
    return [cell for cell in named if len(cell[0]) < 10 and len(cell[1]) < 10]


def _ordered(text: str) -> Iterator[tuple[str, str]]:
    """Cells as "the second row, third column" has them."""
    for match in _CELL_BY_ORDER.finditer(text):
        places = [_place(word.lower()) for word in match.groups()]
        if all(places):
            yield places[0], places[1]


def _place(word: str) -> str:
    if word in _ORDINALS:
        return str(_ORDINALS.index(word) + 1)
    number = re.fullmatch(r"(\d{1,3})(?:st|nd|rd|th)", word, re.ASCII)
    return number[1] if number is not None else ""


def _only(found: Any) -> Any:
    """The one thing that is named, however often."""
    values = list(found)
    return values[0] if values and all(value == values[0] for value in values) else None


def _order(text: str, pieces: int) -> list[int] | None:
    """The numbers of the last line that has one for each piece, also behind a colon; else of the last that has any."""
    parts = [part for line in text.splitlines() for part in (line.rpartition(":")[2], line)]
    lines = [numbers for part in parts if (numbers := _NUMBER.findall(part))]
    whole = [numbers for numbers in lines if len(numbers) == pieces]
    return [int(number) for number in (whole or lines)[-1] if len(number) < 10] if lines else None
