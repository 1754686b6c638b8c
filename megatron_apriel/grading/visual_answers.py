"""Answers to the visual tasks: a letter, yes or no, a number, a cell of a grid, an order of pieces.

The questions ask for the answer alone, so a short form is expected, and a sentence around it is allowed. Where a
response names several answers, the one in its last box or behind its last "answer is" counts, and of several there the
one before the first bracket, colon or end of a sentence; else there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_LETTER = re.compile(r"(?<![\w'])([A-H])(?![\w'])")
_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w]|\.\d)", re.ASCII)
_ROW, _COLUMN = r"\brow\s*[:=#]?\s*(\d+)", r"\bcol(?:umn)?\s*[:=#]?\s*(\d+)"
_BETWEEN = r"\W{1,4}(?:and\s+)?"
_CELL = re.compile(f"{_ROW}{_BETWEEN}{_COLUMN}\\b", re.IGNORECASE | re.ASCII)
_CELL_BY_COLUMN = re.compile(f"{_COLUMN}{_BETWEEN}{_ROW}\\b", re.IGNORECASE | re.ASCII)
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
    if found is None and (told := final_answer(response)) is not None:
        found = read(told)
        if found is None:
            found = read(_FIRST_PART.split(told, maxsplit=1)[0])
    if found is None:
        return without_answer("it names none, or several")
    return compared(found == answer, str(found), str(answer))


def _reader(answer: Any) -> Callable[[str], Any] | None:
    if isinstance(answer, bool):
        return lambda text: _only(word.lower() == "yes" for word in _YES_OR_NO.findall(text))
    if isinstance(answer, int):
        return lambda text: _only(int(number) for number in _NUMBER.findall(text) if len(number) < 10)
    if isinstance(answer, str) and _LETTER.fullmatch(answer):
        return lambda text: _only(_LETTER.findall(text))
    if isinstance(answer, list) and all(type(number) is int for number in answer):
        if len(answer) == 2:
            return lambda text: _only([int(row), int(column)] for row, column in _cells(text))
        if len(answer) > 2:
            return lambda text: _order(text, len(answer))
    return None


def _cells(text: str) -> list[tuple[str, str]]:
    text = text.replace("*", "")
    named = _CELL.findall(text) or [(row, column) for column, row in _CELL_BY_COLUMN.findall(text)]
    return [cell for cell in named if len(cell[0]) < 10 and len(cell[1]) < 10]


def _only(found: Any) -> Any:
    """The one thing that is named, however often."""
    values = list(found)
    return values[0] if values and all(value == values[0] for value in values) else None


def _order(text: str, pieces: int) -> list[int] | None:
    """The numbers of the last line that has one for each piece, else of the last that has any."""
    lines = [numbers for line in text.splitlines() if (numbers := _NUMBER.findall(line))]
    whole = [numbers for numbers in lines if len(numbers) == pieces]
    return [int(number) for number in (whole or lines)[-1] if len(number) < 10] if lines else None
