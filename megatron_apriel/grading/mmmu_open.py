"""MMMU's official rule for open questions: the gold answer occurs in what a response says, or is one of its numbers.

evalscope's prompt asks for a last line ``ANSWER: ...``, which the rule does not know: it would look at "is" and "so" in
the lines before. So what stands behind the last such label, else in the last box, is given to the rule, and all of a
response only where it has neither; what such a response concludes is right as well.

As ``eval_utils.py`` (MMMU-Benchmark/MMMU) has it: of every line, the shortest tail behind words such as "is" or
"answer" counts, behind "=" in the last line too; where no line has any, the whole response counts. Numbers in them
are compared as numbers, rounded to two digits behind the point.
"""

from __future__ import annotations

import ast
import re

from megatron_apriel.grading.boxed import last_boxed
from megatron_apriel.grading.final_answer import ANSWER, final_answer, labelled_answer
from megatron_apriel.grading.spelling import plain_spelling, without_end_tokens, without_text_commands
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = ("", *":,.!?;'")
_LABEL = re.compile(r"(?i)(?:^|[\s*_#(])(?:final\s+)?answer[*_`]*\s*:[*_`]*", re.MULTILINE)
_HEADED = re.compile(
    r"(?im)^[ \t#*]*(?:final[ \t]+)?answer[ \t*:]*$|<answer>|[\"'](?:\w{1,20}_)?answer[\"']\s*:|"
    rf"^[ \t*#]*(?:{ANSWER})\**[ \t]*[:\uff1a\u662f\u2192]"
)
_SHORT = 200
"""Letters of an answer that counts as it is too: the rule takes what stands behind the "is" of "apoptosis (...)"."""
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_MARKS = {ord(mark): None for mark in "$*_`\\%"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With thousands divided, with an exponent, plain. Each digit is looked at a bounded number of times."""


def _said(response: str) -> str | None:
    """The answer behind the last label or heading, else in the last box, as plain text."""
    labels = [label.end() for label in _LABEL.finditer(response)]
    said = response[labels[-1] :].lstrip(" \t*_`\n").partition("\n")[0] if labels else ""
    if not said.strip(" *_`.$"):
        said = last_boxed(response) or _alone(response)
    if (inner := last_boxed(said)) is not None:
        said = inner
    return _plain(said) if said else None


def _alone(response: str) -> str:
    """What stands below a heading, between tags or in a field, or a response that is one short line."""
    if _HEADED.search(response) is not None:
        return labelled_answer(response) or ""
    line = response.strip()
    return line if len(line) <= _SHORT and "\n" not in line and not any(word in line.lower() for word in _WORDS) else ""


def _plain(said: str) -> str:
    """Without marks of Markdown and LaTeX around numbers and words, fractions divided by a stroke."""
    said = _FRACTION.sub(r"\1/\2", without_text_commands(plain_spelling(said.replace("{,}", ","))))
    said = said.translate(_MARKS).strip(" \"'")
    return said.rstrip(".").strip("()[]") if len(said) < 5 else said


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
    golds = {text for answer in _gold(gold) for text in (answer, _plain(answer)) if text.strip()}
    right = [value for text in golds for value in _normalised(text)]
    if not right:
        return bad_item(f"{gold!r} is no answer")
    response = without_end_tokens(response)
    said = _said(response) or ""
    tails = _tails(said or response)
    numbers = [number for tail in tails for pattern in _NUMBERS for number in pattern.findall(tail)]
    stated = said or _plain(final_answer(response) or "")
    if 0 < len(stated) <= _SHORT:
        tails.append(stated.lower())
    values = [value for text in (*tails, *numbers) for value in _normalised(text)]
    if not any(isinstance(value, float) or value.strip() for value in values):
        return without_answer("it says nothing")
    is_right = any(
        value in right if isinstance(value, float) else any(isinstance(one, str) and one in value for one in right)
        for value in values
    )
    return compared(is_right, tails[-1][:80], gold)
