"""The value that a response ends with, where it has neither a box nor words before an answer.

Its last sentence with a number or a formula, unless it rejects one, is nothing else or says that something is one: "The
area is 12 cm²", ``x = 5``, "Total: 17". Else it is the last number in bold, or the only one of that sentence, unless
the response refuses.
"""

from __future__ import annotations

import re
from collections import deque

from megatron_apriel.grading.boxed import is_balanced
from megatron_apriel.grading.numbers import without_powers
from megatron_apriel.grading.spelling import TEXT_COMMANDS, plain_spelling

AROUND = " \t\r*`"
"""Marks around an answer."""
LONGEST = 2_000
"""Letters of a formula on lines of its own, or of a sentence."""
_BOLD_MARK = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_BEFORE = re.compile(r"\}?(?:\s|~|\\(?:q?quad(?![a-z])|[,;: ]))*")
"""Behind ``\\text{Answer:``."""
_REMARK = re.compile(
    r"[\s(*]{0,9}\bwithout (?:the )?quot(?:es|ation marks)\b.*|"
    r"(?<=[\w$})%])\s*\((?=[^()]{0,60}[A-Za-z]{3})[A-Za-z ,'-]{3,60}\)[.*$ ]*\Z"
)
"""Of a prompt that is repeated; and words in brackets at the end."""
_REASON = re.compile(r"(?<=[\d$)}%]),?\s(?:which|since|because|rather than|not|or (?:about|approximately|roughly))\s.*")
"""Words behind a value that do not belong to it."""
_TWICE = re.compile(r"(\S.*?)\s+\([^()]{1,40}\)")
"""A value, and it again in brackets."""
_LISTED = re.compile(r"(?i)\bare:?\s+(.+)")
_BETWEEN = re.compile(r",?\s+(?:and|or)\s+|,\s+")
_STATED = re.compile(
    r"(?i)(?:\b(?:is|are|equals?)\b|\bit's\b|=|:(?= ))"
    r"(?: (?:equivalent|equal) to| approximately| about| therefore)?"
)
_SEVERAL = re.compile(
    r"(?:\b(?:is|are|equals?)\b|=)[^A-Za-z\d]{0,9}\d[^=]{0,40}?\b(?:and|or)\b(?! about| approximately| roughly)|"
    r"=[^=]*(?:[,;]\s|quad|\bor\b|\band\b)[^=]*="
)
"""Two values, or two equations."""
_CONCLUDES = re.compile(
    r"(?i)[\s*#>\d.-]{0,9}(?:(?:therefore|thus|hence|so|finally|consequently|in conclusion|overall|we conclude that)\b|"
    r"=>|[\u2192\u21d2\u2234]|\u56e0\u6b64|\u6240\u4ee5|\u6545|\u7efc\u4e0a)"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_UNIT = re.compile(
    rf"\s*\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}(?:\^\{{?[23]\}}?)?\Z|"
    r"(?:(?<=\d)| )[A-Za-z]{1,20}(?:\^?\{?[23\xb2\xb3]\}?)?(?: [A-Za-z]{1,20})?\Z"
)
"""Behind a value: a command of text, or at most two words."""
_DELIMITER = re.compile(r"\$|\\[()\[\]]")
_BARE = re.compile(r"(?!.*(?:(?<![\\A-Za-z])[A-Za-z]{2,}|[\u3040-\u9fff].*\d))(?=.*[\d\\]).+(?<![=+*/<(])")
"""A formula: no words but commands of LaTeX, and not cut off behind a sign."""
_LONGEST_VALUE = 100
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n|,\s(?=(?:so|thus|hence|therefore)\s)")
_SENTENCES = 50
"""Of a response that are looked at, from the end on."""
_VALUE = re.compile(r"\d|\\(?!end)[a-z]")
_BOLD = re.compile(r"\*\*(?!\d+[.)]\s)([-+$\u20ac\xa3\\( ]{0,4}\d[^*\n]{0,79})(?<!:)\*\*(?!:)")
"""A number in bold with what follows it, which heads no part of a list."""
_REJECTS = re.compile(r"(?i)\b(?:is|are|be)(?:n't| (?:not|too|wrong|incorrect))\b(?!.*\bbut\b)")
_NUMBERS = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|[.,]\d)", re.ASCII)
_FORMULA = re.compile(r"[\^/{}+]|\\[a-z]|\b[A-Za-z] ?- ?\d")
_FINISHED = re.compile(r"(?<=[a-z\d)$}%][.!?])\s+(?=[A-Z])")
"""Between sentences of a line."""
_REFUSED = re.compile(
    r"(?i)\b(?:cannot|can't|unable|not possible|impossible|insufficient|not (?:enough|provide|clear)|"
    r"know nothing|(?:don't|do not) know|unknown|no idea)\b"
)
_END = 300
"""Letters at the end of a response, in which it refuses."""


def concluded(text: str) -> str | None:
    """The number or formula that a response ends with; None where there is none, or several."""
    sentences = (one for one in reversed(_SENTENCE_END.split(text)[-_SENTENCES:]) if len(one) <= LONGEST)
    sentence = next((one for one in sentences if _VALUE.search(one) and not _REJECTS.search(one)), "")
    sentence = sentence.strip(AROUND + "#>&").removesuffix("\\\\").removesuffix(".")
    if not sentence:
        return None
    if (value := stated(sentence)) is not None:
        return value
    concludes = _CONCLUDES.match(sentence)
    value = unwrapped(trimmed(sentence[concludes.end() if concludes else 0 :].lstrip(" ,:*")))
    if is_value(value) and not (concludes and _WORD.search(value)):
        return value
    return None if _is_cut_off(text) else _only_number(text, sentence)


def _is_cut_off(text: str) -> bool:
    """Whether the sentences of the last line end with a mark, but not the last one."""
    line = text.rstrip().rpartition("\n")[2][-LONGEST:]
    return line[-1:].isalnum() and _FINISHED.search(line) is not None


def stated(sentence: str) -> str | None:
    """What stands behind the last "is" of a sentence, if that is nothing but a value; several behind "are"."""
    if (listed := _LISTED.search(sentence)) is not None:
        values = [unwrapped(trimmed(part)) for part in _BETWEEN.split(listed[1])]
        if len(values) > 1 and all(map(is_value, values)):
            return ", ".join(values)
    places = deque(_STATED.finditer(sentence), maxlen=1)
    if not places or _SEVERAL.search(sentence):
        return None
    value = unwrapped(trimmed(sentence[places[0].end() :]))
    return value if is_value(value) else None


def is_value(text: str) -> bool:
    """Whether a text is nothing but a number or a formula, with a unit or without."""
    return 0 < len(text) <= _LONGEST_VALUE and _BARE.fullmatch(_UNIT.sub("", text)) is not None and is_balanced(text)


def unwrapped(value: str) -> str:
    """A value without the marks that begin and end its formulas; what is none stays as it is."""
    inside = _DELIMITER.sub("", value).strip()
    return inside if len(inside) < len(value) and is_value(inside) else value


def trimmed(said: str) -> str:
    """Without marks around it, what belongs to a formula that the words before it stand in, and remarks."""
    if not is_balanced(said) or said[:1] in "\\~":
        said = said[_BEFORE.match(said).end() :]  # type: ignore[union-attr]
    said = _REMARK.sub("", _BOLD_MARK.sub("", said)).strip(AROUND).rstrip(".\u3002").strip(AROUND)
    for opening, closing in (("\\[", "\\]"), ("\\(", "\\)")):
        if closing in said and opening not in said:
            said = said.removesuffix(closing)
    if said.count("$$") == 1 or said.count("$") == 1:
        said = said.removesuffix("$$").removesuffix("$")
    said = _REASON.sub("", said)
    if (twice := _TWICE.fullmatch(said[:LONGEST])) is not None and is_value(twice[1]):
        said = twice[1]
    return said.strip(AROUND).removesuffix(".").strip(AROUND)


def _only_number(text: str, sentence: str) -> str | None:
    """The last number in bold, else the only one of a sentence."""
    if _REFUSED.search(text, max(len(text) - _END, 0)):
        return None
    if bold := deque(_BOLD.finditer(text), maxlen=1):
        return bold[0][1].strip()
    plain = without_powers(plain_spelling(sentence)).replace("^{\\circ}", "")
    numbers = set(_NUMBERS.findall(plain))
    return numbers.pop() if len(numbers) == 1 and not _FORMULA.search(plain) else None
