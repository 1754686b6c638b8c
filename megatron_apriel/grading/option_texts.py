"""The options of a question: their letters, their texts, and which of them stands in what a response says.

Texts are compared without case, a leading article, marks around them and what only typesets; a number with a unit also
by the number, a fraction also as a ratio. A text that is part of another one that occurs does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from megatron_apriel.grading.spelling import plain_spelling, without_text_commands

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of options, in their order."""
_RATIO = re.compile(r"\\[dt]?frac\{(-?\d{1,9})\}\{(\d{1,9})\}|(\d{1,9}) ?[:/] ?(\d{1,9})(?!\d)", re.ASCII)
_NUMBER = re.compile(
    r"(?:about |approximately |[a-z] ?= ?)?([+-]?\d[\d,]*(?:\.\d+)?)(?:/(\d{1,9})(?!\d))?"
    r"\s*[a-z%{} /]*(?:\^\{?(?:\\circ|[23])\}?)?[a-z]?",
    re.ASCII,
)
"""A number with a unit: ``12 cm``, ``45^{\\circ}``, ``30%``, ``8 m^2``, ``x = 1/2``."""
_BEFORE, _AFTER = frozenset(["", *" (=:,;'[\u2248"]), frozenset(["", *" ).,;:!?'\u3002]"])
"""What may stand beside a text, for it to stand there by itself."""
_CLOSING = frozenset(["", *",.;:!(-\u2013\u2014"])
"""What may stand behind a text that is the beginning of a line."""
_POINT = frozenset(f".{digit}" for digit in range(10))
_JOINING = frozenset("+-*/^_{}<>%\\")
_DENIED = re.compile(r"(?:\bnot|n't) (?:the |an? |in )?\Z")
_FACTORS = ("\\cdot", "\\times", "\\div")
_WRITTEN = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,;!()\[\]]|\\(?=[%$])|[$*_`\"]")
_ARTICLE = re.compile(r"\A(?:the|an?|it) (?=\S)")
_SPACED = re.compile(r"\s*([,+=])\s*(?=[-\d\\])")
"""Signs between numbers, with blanks or without."""
_LAST = re.compile(r", (?=(?:and|or) )")
"""A comma before the last of several."""
_POINT_FIRST = re.compile(r"(?<![\d.])\.(?=\d)")


def only(found: Iterable[str]) -> str | None:
    """The one thing that is found, however often."""
    values = set(found)
    return values.pop() if len(values) == 1 else None


class Options:
    """The options of a question, and which of them stands somewhere.

    Attributes:
        letters: of the options.

    Args:
        number: of options.
        choices: their texts, where they are known.
    """

    def __init__(self, number: int, choices: Sequence[str] = ()) -> None:
        self.letters = LETTERS[:number]
        texts = zip(LETTERS, map(_bare, choices), strict=False)
        self._choices = [(letter, choice) for letter, choice in texts if choice]
        self._values = {letter: value for letter, choice in self._choices if (value := _value(choice)) is not None}

    @property
    def have_texts(self) -> bool:
        """Whether any text is known."""
        return bool(self._choices)

    def same(self, said: str) -> str | None:
        """The option whose text, or whose only number, this is; a single letter is an option's name first."""
        bare = _bare(said)
        if not self._choices or (len(bare) < 2 and not bare.isdigit()):
            return None
        close = bare.replace(" ", "")
        if (one := only(letter for letter, choice in self._choices if choice.replace(" ", "") == close)) is not None:
            return one
        value = _value(bare)
        return None if value is None else only(letter for letter, one in self._values.items() if one == value)

    def named(self, letter: str) -> str:
        """A letter that stands alone, or the option whose text it is where there is no option of that name."""
        if letter in self.letters:
            return letter
        return only(one for one, choice in self._choices if choice == letter.casefold()) or letter

    def within(self, said: str) -> str | None:
        """The only option whose text occurs; one that is part of another that occurs does not count."""
        return only(self._occurring(said))

    def last_within(self, lines: Iterable[str]) -> str | None:
        """The only option whose text occurs in the first of some lines in which any does."""
        return only(next(filter(None, map(self._occurring, lines)), []))

    def containing(self, said: str) -> str | None:
        """The only option of whose text this is a part, if it has words."""
        bare = _bare(said)
        if len(bare) < 4 or not bare.replace(" ", "").isalpha():
            return None
        return only(letter for letter, choice in self._choices if _occurs(bare, choice))

    def _occurring(self, said: str) -> list[str]:
        if not self._choices:
            return []
        bare = _bare(said)
        found = [(letter, choice) for letter, choice in self._choices if _occurs(choice, bare)]
        return [letter for letter, one in found if not any(one != other and one in other for _, other in found)]

    def at_beginning(self, said: str) -> str | None:
        """The only option with whose text a line begins, with a mark or nothing behind it."""
        bare = _bare(said)
        return only(
            letter for letter, choice in self._choices
            if bare.startswith(choice) and bare[len(choice) :].lstrip()[:1] in _CLOSING
            and _occurs(choice, bare[: len(choice) + 3])
        )  # fmt: skip


def _bare(text: str) -> str:
    """In small letters, without marks around it and what only typesets; fractions and ratios of numbers as ``5/12``."""
    text = _RATIO.sub(r"\1\3/\2\4", _WRITTEN.sub("", without_text_commands(plain_spelling(text))))
    text = " ".join(_SPACED.sub(r"\1", _POINT_FIRST.sub("0.", _LAST.sub(" ", text))).split()).casefold()
    return _ARTICLE.sub("", text.strip(" .,;:!\"'"))


def _value(bare: str) -> float | None:
    """The number that a text is, its unit left out."""
    number = _NUMBER.fullmatch(bare)
    if number is None or (below := int(number[2] or 1)) == 0:
        return None
    return float(number[1].replace(",", "")) / below


def _occurs(part: str, text: str) -> bool:
    """Whether a text occurs, not as part of a word; one with a number or a formula, not as part of a longer one."""
    is_formula = any(letter.isdigit() or letter == "\\" for letter in part) or len(part) < 2
    place = text.find(part)
    while place >= 0:
        before, after = text[place - 1 : place] if place else "", text[place + len(part) : place + len(part) + 2]
        if before in _BEFORE and (after[:1] in _AFTER and after not in _POINT):
            if _DENIED.search(text[max(place - 12, 0) : place]):
                place = text.find(part, place + len(part))
                continue
            if not is_formula:
                return True
            around = text[max(place - 2, 0) : place].strip()[-1:] + text[place + len(part) :][:2].strip()[:1]
            is_factor = text[max(place - 8, 0) : place].rstrip().endswith(_FACTORS)
            if not is_factor and not any(letter in _JOINING for letter in around):
                return True
        place = text.find(part, place + len(part))
    return False
