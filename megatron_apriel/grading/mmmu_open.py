"""MMMU's official rule for open questions: the gold answer occurs in what a response says, or is one of its numbers.

As ``eval_utils.py`` (MMMU-Benchmark/MMMU) has it: of every line, the shortest tail behind words such as "is" or
"answer" counts, behind "=" in the last line too; where no line has any, the whole response counts. Numbers in them
are compared as numbers, rounded to two digits behind the point.
"""

from __future__ import annotations

import ast
import re

from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = ("", *":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With thousands divided, with an exponent, plain. Each digit is looked at a bounded number of times."""


def _tails(response: str) -> list[str]:
    """What a response says its answer is."""
    whole = response.strip().strip(".").lower()
    lines = whole.split("\n")
    found = []
    for number, line in enumerate(lines):
        marks = (*_WORDS, "=") if number == len(lines) - 1 else _WORDS
        tails = [line.rpartition(mark)[2].strip() for mark in marks if mark in line]
        shortest = ""
        for tail in tails:  # an empty one takes the place of a shortest, and the next takes its place
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest not in _NOTHING:
            found.append(shortest)
    return found or [whole]


def _normalised(text: str) -> list[str | float]:
    """A number rounded, or a text in small letters; a single letter with a blank, so that it is not found in words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _gold(text: str) -> list[str]:
    """The answers that are right; several are written as a list."""
    if text.startswith("["):
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return []
        return [str(one) for one in listed] if isinstance(listed, list) else []
    return [text] if text.strip() else []


def grade_mmmu_open(response: str, gold: str) -> Verdict:
    """Compare what a response says with the answers that are right."""
    if not (right := [value for answer in _gold(gold) for value in _normalised(answer)]):
        return bad_item(f"{gold!r} is no answer")
    tails = _tails(response)
    numbers = [number for tail in tails for pattern in _NUMBERS for number in pattern.findall(tail)]
    said = [value for text in (*tails, *numbers) for value in _normalised(text)]
    if not any(isinstance(value, float) or value.strip() for value in said):
        return without_answer("it says nothing")
    is_right = any(
        value in right if isinstance(value, float) else any(isinstance(one, str) and one in value for one in right)
        for value in said
    )
    return compared(is_right, tails[-1][:80], gold)
