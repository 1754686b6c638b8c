"""MathVista's official rule, from an answer that was taken out of the response (by a judge, or as the last box).

As ``evaluation/calculate_score.py`` (lupantech/MathVista at 53d52587) has it: a letter in brackets or alone gives its
choice, anything else the choice at the smallest edit distance, so that a multiple-choice question always has an answer;
numbers are rounded as the question says and compared as text.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.numbers import number_in, numeral_in
from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.grading.spelling import plain_spelling
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

AnswerType = Literal["text", "integer", "float", "list"]
_LISTED = re.compile(r"\[[-\d., ]{1,100}\]", re.ASCII)
_IN_BRACKETS = re.compile(r"\(([a-zA-Z])\)")


def nearest(text: str, choices: Sequence[str]) -> str:
    """The choice at the smallest edit distance, the first of equals."""
    return min(choices, key=lambda choice: edit_distance(text, choice))


def edit_distance(first: str, second: str) -> int:
    """Letters to insert, remove or replace between two texts (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        above_left, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = min(above + 1, row[place - 1] + 1, above_left + (letter != other))
            above_left = above
    return row[-1]


def normalised(found: str, answer_type: AnswerType, choices: Sequence[str], precision: Any) -> str | None:
    """An answer as it is compared; None where it is not of the question's type."""
    if choices:
        found = found.strip()
        if bracketed := _IN_BRACKETS.search(found):
            found = bracketed[1].upper()
        if len(found) == 1 and found in LETTERS[: len(choices)]:
            return choices[LETTERS.index(found)]
        return nearest(found, choices)
    try:
        if answer_type == "integer":
            return str(int(float(found)))
        if answer_type == "float":
            return str(round(float(found), int(precision)))
    except (ValueError, OverflowError, TypeError):
        return None
    return found


def taken_answer(response: str, answer_type: AnswerType, choices: Sequence[str]) -> str | None:
    """The answer in a response, which the official evaluation lets a model take out.

    Of a multiple-choice question the option that it names, else what the last box or line of the answer says. Of others
    the box or line; of numbers the only one there, without its unit, in digits or as a word.
    """
    said = final_answer(response)
    if choices:
        if (letter := named_option(response, len(choices), choices)) is not None and len(letter) == 1:
            return f"({letter})"
        return None if said is None else plain_spelling(said).removeprefix("\\text{").removesuffix("}")
    if answer_type in ("integer", "float"):
        numeral = numeral_in(response if said is None else said)
        return (said and number_in(said)) or (said if numeral is None else str(numeral))
    if answer_type == "list":
        listed = _LISTED.findall(response) if said is None else [said]
        return _plain_list(listed[-1]) if listed else None
    return said


def _plain_list(said: str) -> str:
    """A list as Python writes it; what is none stays as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            listed = ast.literal_eval(said.strip("$= ").replace("\\left", "").replace("\\right", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return said
    return str(list(listed)) if isinstance(listed, list | tuple) else said


def grade_mathvista(
    found: str | None, gold: str, answer_type: AnswerType, choices: Sequence[str] = (), precision: Any = None
) -> Verdict:
    """Compare an answer with the gold one.

    Args:
        found: the answer, already taken out of the response; None if none could be.
        gold: as the data have it.
        answer_type: of the question.
        choices: of a multiple-choice question.
        precision: digits behind the point of a float.
    """
    if choices and gold not in choices:
        return bad_item(f"the answer {gold!r} is none of the choices")
    if found is None:
        return without_answer("no answer is found")
    value = normalised(found, answer_type, choices, precision)
    if value is None:
        return without_answer(f"{found} is no {answer_type}")
    return compared(value == gold, value, gold)
