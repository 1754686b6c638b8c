"""Numbers as people and models write them; whole ones are compared without a limit on their digits."""

from __future__ import annotations

import re

from megatron_apriel.grading.spelling import TEXT_COMMANDS, plain_spelling

_AROUND = re.compile(r"\\(?:,|!|;|:|\s|left|right|quad|qquad)|[$\s]|\{,\}|\^\{?\\circ\}?|\\%")
_WORDS = re.compile(rf"\\(?:{TEXT_COMMANDS})\{{([^{{}}\\]*)\}}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+", re.ASCII)
_NAME = re.compile(r"\\?[A-Za-z]{1,12}(?:_\{?\w{1,9}\}?)?'?(?:\([A-Za-z0-9,]{1,20}\))?", re.ASCII)
"""Of a quantity; an equation with another side than a name states no number."""
_WHOLE = re.compile(r"([+-]?)(?=\d)0*+(\d*+)(?:\.0*+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)", re.ASCII)
_FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))", re.ASCII)
_POWER = re.compile(r"([+-]?\d{1,20}(?:\.\d{1,20})?)\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{?([+-]?\d{1,3})\}?", re.ASCII)
_MIXED = re.compile(r"([+-]?)(\d{1,15})\s*\\[dt]?frac\{(\d{1,15})\}\{(\d{1,15})\}", re.ASCII)
_UNIT = re.compile(rf"\\(?:{TEXT_COMMANDS})\{{[^{{}}\d]*\}}(?:\^\{{?\d\}}?)?")
_RAISED = re.compile(r"(?<=[A-Za-z])\s?\^\{?[23]\}?")
"""Of a unit: no number of its own."""
_NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
             "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")  # fmt: skip
_NUMERAL = re.compile(rf"\b({'|'.join(_NUMERALS)})\b", re.IGNORECASE)


def number_in(text: str) -> str | None:
    """The only number in a text, as Python reads it, whatever stands around: ``1200`` for ``$1,200``, ``12 cm``.

    A fraction is divided, and a power of ten written with an e; None where there is no number, or several.
    """
    plain = _AROUND.sub(" ", _WORDS.sub(r" \1 ", _UNIT.sub(" ", plain_spelling(text)))).rpartition("=")[2].strip()
    if (fraction := _FRACTION.fullmatch(plain)) is not None:
        above, below = fraction[2] or fraction[4], int(fraction[3] or fraction[5])
        return str(int(fraction[1] + above) / below) if below else None
    if (power := _POWER.fullmatch(plain)) is not None:
        return f"{power[1]}e{power[2]}"
    if (mixed := _MIXED.fullmatch(plain)) is not None and int(mixed[4]):
        return f"{mixed[1]}{int(mixed[2]) + int(mixed[3]) / int(mixed[4])}"
    found = _NUMBER.findall(without_powers(plain))
    return found[0].replace(",", "") if len(found) == 1 else None


def without_powers(text: str) -> str:
    """A text without the powers of its units: ``5 cm`` for ``5 cm^2``."""
    return _RAISED.sub("", text)


def numeral_in(text: str) -> int | None:
    """The only number that is written as a word, where no digits stand; "one" only beside few words."""
    numerals = {numeral.lower() for numeral in _NUMERAL.findall(text)}
    if any(letter.isdigit() for letter in text) or ("one" in numerals and len(text.split()) > 3) or len(numerals) != 1:
        return None
    return _NUMERALS.index(numerals.pop())


def whole_number(text: str) -> str | None:
    """A whole number in its one spelling: ``70`` for ``070``, ``+70``, ``70.0``, ``$70$``, ``x = 70``; None if none.

    Thousands may be divided: ``1,234``, ``1{,}234``.
    """
    name, _, plain = _AROUND.sub("", _WORDS.sub(r"\1", text)).replace("\u2212", "-").rpartition("=")
    if name and _NAME.fullmatch(name) is None:
        return None
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    found = _WHOLE.fullmatch(plain)
    if found is None:
        return None
    return "-" * (found[1] == "-") + found[2] if found[2] else "0"
