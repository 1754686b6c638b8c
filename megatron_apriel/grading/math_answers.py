"""Whether a mathematical answer equals the gold one: as text, as a whole number, else by math-verify.

math-verify 0.9.0 joins neighbouring boxes, is not symmetric in gold and answer, wants the main thread for its alarm,
and does about 14 verifications a second. So the last box alone is handed over, the gold first, in a process of its own,
and only what text and whole numbers do not settle. Nor does it read a gold answer with words, units in words or several
named parts, or take an inequality for an interval: that is settled before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from megatron_apriel.grading import math_process
from megatron_apriel.grading.boxed import is_balanced
from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.intervals import as_interval, is_interval
from megatron_apriel.grading.line_process import Grader, LineProcess, UnansweredError
from megatron_apriel.grading.named_parts import listed_intervals, named_parts
from megatron_apriel.grading.numbers import whole_number
from megatron_apriel.grading.spelling import TEXT_COMMANDS
from megatron_apriel.grading.stated_value import stated_value
from megatron_apriel.grading.units import times
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, bad_item, compared, without_answer

SECONDS = 15.0
"""That math-verify may take for one pair: it gives up by itself after 5 s each for gold, answer and comparing."""
MOST_LETTERS = 2_000
"""Of an answer; a longer one is no expression that anybody wrote down as a result."""
_ASSIGNED = re.compile(r"\s*([a-zA-Z])\s*=\s*[^=]+\Z")
_DECIMAL = re.compile(r"[+-]?\d{1,50}(?:\.\d{0,50})?", re.ASCII)
_PERCENT = re.compile(r"\s*\\?%\Z")
"""Whose sign may be left out; math-verify allows that for whole numbers alone."""
_NAME = re.compile(r"[A-Z]{2,}")
"""Of points or an order of them: ``BCA``, which math-verify takes for a product."""
_RATIO = re.compile(r"\s*\d{1,15}(?:\.\d{1,15})?(?:\s*:\s*\d{1,15}(?:\.\d{1,15})?){2,}\s*", re.ASCII)
"""Of three numbers or more, which math-verify divides by one another."""
_TEXT = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}\\]*)\}}")


class MathGrader(Grader):
    """Compares mathematical answers; a context manager.

    Args:
        seconds: that one comparison may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.version = f"math-verify {version('math-verify')}"
        self._process = LineProcess([sys.executable, "-P", str(Path(math_process.__file__))], seconds)

    def grade(self, response: str, gold: str) -> Verdict:
        """Compare the last box of a response with the gold answer.

        A gold answer that cannot be read is an error of the data; an answer that cannot be read is none.
        """
        found = final_answer(response)
        if found is None and is_equal_text(whole := response.strip(" \t\n*`."), gold):
            return compared(True, whole, gold)
        if found is None:
            return without_answer("there is no box that is closed, and no line that says the answer")
        if len(found) > MOST_LETTERS:
            return without_answer(f"the answer has {len(found):,} letters, more than {MOST_LETTERS:,}")
        if is_equal_text(found, gold) or (gold.isalpha() and is_equal_text(found.partition(",")[0], gold)):
            return compared(True, found, gold)
        if (parts := named_parts(gold)) is not None:
            return self._by_parts(found, gold, parts)
        return self._by_value(found, gold)

    def _by_parts(self, found: str, gold: str, right: Mapping[str, str]) -> Verdict:
        """Every part that the gold answer names must be there, by its name or in the same order."""
        ours = named_parts(found) or {}
        if not ours and len(listed := listed_intervals(found)) == len(right):
            ours = dict(zip(right, listed, strict=True))
        if ours.keys() != right.keys():
            return compared(False, found, gold)
        for name, value in right.items():
            if is_equal_text(ours[name], value):
                continue
            part = self._by_value(ours[name], value)
            if not part.is_right:
                return Verdict(part.mark, f"{name}: {part.reason}", part.cause, found)
        return compared(True, found, gold)

    def _by_value(self, found: str, gold: str) -> Verdict:
        (ours, our_unit), (theirs, their_unit) = stated_value(found), stated_value(gold)
        if our_unit and their_unit and our_unit != their_unit:
            if (factor := times(our_unit, their_unit)) is None:
                return compared(False, found, gold)
            if _DECIMAL.fullmatch(ours) and _DECIMAL.fullmatch(theirs):
                return compared(Fraction(ours) * factor == Fraction(theirs), found, gold)
            ours = f"({ours}) \\cdot \\frac{{{factor.numerator}}}{{{factor.denominator}}}"
        if is_equal_text(ours, theirs):
            return compared(True, found, gold)
        named = _ASSIGNED.match(ours), _ASSIGNED.match(theirs)
        if named[0] is not None and named[1] is not None and named[0][1] != named[1][1]:
            return compared(False, found, gold)
        bare = [_PERCENT.sub("", one) for one in (ours, theirs)]
        if bare != [ours, theirs] and all(map(_DECIMAL.fullmatch, bare)) and Fraction(bare[0]) == Fraction(bare[1]):
            return compared(True, found, gold)
        if _NAME.fullmatch(ours) and _NAME.fullmatch(theirs):
            return compared(False, found, gold)
        if _RATIO.fullmatch(ours) and _RATIO.fullmatch(theirs):
            return compared(_in_parts(ours) == _in_parts(theirs), found, gold)
        numbers = whole_number(ours), whole_number(theirs)
        if None not in numbers:
            return compared(numbers[0] == numbers[1], found, gold)
        if is_interval(theirs) and (as_gold := as_interval(ours)) is not None:
            ours = as_gold
        elif is_interval(ours) and (as_answer := as_interval(theirs)) is not None:
            theirs = as_answer
        return self._by_math_verify(found, gold, ours, theirs)

    def _by_math_verify(self, found: str, gold: str, ours: str, theirs: str) -> Verdict:
        if not is_balanced(gold):
            return bad_item(f"the braces of the gold answer {gold} are not closed")
        try:
            said = self._process.ask({"gold": theirs, "answer": ours})
        except UnansweredError as error:
            return replace(error.verdict(f"comparing {found} with {gold}"), found=found)
        match said["result"]:
            case "bad gold":
                return bad_item(f"math-verify cannot read the gold answer {gold}")
            case "no answer":
                return without_answer(f"math-verify cannot read {found}")
            case "slow":
                return Verdict(Mark.NONE, f"math-verify gave up on {found}", Cause.SLOW, found)
            case result:
                return compared(result == "equal", found, gold)


def _in_parts(ratio: str) -> list[Fraction]:
    """The parts of a ratio, of one in all."""
    parts = [Fraction(part) for part in ratio.split(":")]
    whole = sum(parts) or Fraction(1)
    return [part / whole for part in parts]


def is_equal_text(first: str, second: str) -> bool:
    """Whether two answers are the same text, but for white space, dollars, marks of text and capitals in words."""
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    text = "".join(_TEXT.sub(r"\1", text.replace("$", "")).split())
    return text.casefold() if text.isalpha() and len(text) > 1 else text
