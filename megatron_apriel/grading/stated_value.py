"""The value that a mathematical answer states, and its unit: 113.1 and cm2 for ``Area $=113.1 \\mathrm{~cm}^{2}$``.

Published right answers carry what math-verify cannot read: words before an equals sign, units in words, in LaTeX or in
braces, bearings (``212°T``), a value twice, a ``\\frac`` whose backslash an escape ate. Models write the same value
with another unit's spelling or without any. A value without a unit is that value; two units that differ are two values.
"""

from __future__ import annotations

import re

from megatron_apriel.grading.spelling import TEXT_COMMANDS, plain_spelling

_NAMES = {
    "mm": "millimeters? millimetres?", "cm": "centimeters? centimetres?", "dm": "", "m": "meters? metres?",
    "km": "kilometers? kilometres?", "in": "inch inches", "ft": "foot feet", "yd": "yards? yds?", "mi": "miles?",
    "mg": "", "g": "grams?", "kg": "kilograms?", "ml": "mL milliliters? millilitres?", "l": "L liters? litres? Litres?",
    "s": "seconds? secs?", "min": "minutes? mins?", "h": "hours? hrs?", "day": "days", "week": "weeks",
    "month": "months", "year": "years", "dollar": "dollars", "cent": "cents", "mph": "", "kph": "",
    "degree": "degrees", "rad": "radians?", "": "units?",
}  # fmt: skip
"""Units and their other spellings; an unnamed unit is none."""
_SPELLINGS = sorted(
    {one for name, others in _NAMES.items() for one in (name, *others.split()) if one}, key=len, reverse=True
)
_NAME = f"(?:{'|'.join(_SPELLINGS)})"
_POWER = r"\s*(?:\^\s*\{?\s*[23]\s*\}?|[\u00b2\u00b3])?"
_ANY_UNIT = rf"((?:square|sq\.?|cubic)?\s*{_NAME}{_POWER}(?:\s*(?:/|\bper\b)\s*{_NAME}{_POWER})?)"
_UNIT = re.compile(rf"(?:(?<=[\d.}})])(?!\w(?!\w))|\s)\s*{_ANY_UNIT}\.?\s*$")
_IN_BRACKETS = re.compile(rf"\(\s*{_ANY_UNIT}\s*\)\.?\s*$")
_POINT = re.compile(
    r"\s*(?:(?i:the\s+)?(?i:points?|vertex|coordinates)\s*(?:(?:is|are|at)\s+)?)?[A-Z]?\s*"
    r"(?=(?:\\left\s*)?\([^()]*,[^()]*\)\s*$)"
)
"""Words or a letter before a pair."""
_WRAPPED = re.compile(rf"\\(?:{TEXT_COMMANDS}|operatorname)\s*\{{\s*~?([^{{}}]*)\}}")
_BRACED = re.compile(r"(?<=[\di}])\s*\{([a-z]{2,})\}")
_BEARING = re.compile(r"(\^\s*\{?\s*\\circ\s*\}?)\s*T\s*$")
_NAMED = re.compile(r"\s*(?:(?=(?:[^=:]*[A-Za-z]){3})[A-Za-z][A-Za-z.,' ]*)?(?:=|:|\bis\b)\s*(?=\S)")
_TURNED = re.compile(r"\s*([^=A-Za-z]+)\s*=\s*[A-Za-z]\s*")
_THOUSANDS = re.compile(r"(?<![\d.,])([+-]?\d{1,3}(?:(?:,|\{,\}|\\,|\\!,)\d{3})+)(?![\d,]|\{,\})", re.ASCII)
_EATEN = {"\x0c": "\\f", "\x08": "\\b", "\u63b3": "\xb0"}
"""Escapes that were read in LaTeX, and a degree sign that was read in another encoding."""
_REMARK = re.compile(
    r"\s*\(?(?:\\text\s*\{\s*\(?\s*mod\s*\}|\bmod\b)\s*\d+\s*\)?\s*$|"
    r"\s*\\p?mod\s*(?:\{\s*\d+\s*\}|\d+)\s*$|"
    r"(?<=\d),?\s*(?:\\q?quad\s*)?\(?\\text\{[ ,(]*(?:as |exactly|final|where )[^{}]*\}\)?\s*$"
)
"""A modulus, and remarks in words."""
_MONEY = re.compile(r"\\?[$\xa3\u20ac\xa5]")
_COUNTED = re.compile(
    r"([+-]?\d[\d,]*(?:\.\d+)?)\s+(?!(?:hundreds?|thousands?|millions?|[bt]rillions?|dozens?|percent|factorial|squared|cubed|"
    r"halves|thirds?|quarters?|fourths?|fifths?|tenths|hundredths|pi|times|plus|minus|over|mod|and|or|to|by|choose)\b)"
    r"[A-Za-z]{3,20}(?:\s+(?!(?:and|or|to|plus|times)\b)[A-Za-z]{2,20}){0,2}"
)
"""A number of things."""
_PRODUCT = re.compile(r"(?<!_)(\{[^{}]{0,50}\d\})\s+(?=\d)")
_BLANKS = re.compile(r"\s{2,}")
_ABOUT = re.compile(r"(?i)\A\s*(?:about|approximately|approx\.|roughly|around|exactly)\s+(?=\S)")
_HAS_VALUE = re.compile(r"\d|\\(?:pi|infty|sqrt|frac)")


def stated_value(text: str) -> tuple[str, str]:
    """Value and unit of an answer or a right answer; no unit where none is known."""
    for eaten, written in _EATEN.items():
        text = text.replace(eaten, written)
    text = _BLANKS.sub(lambda blanks: "\n" if "\n" in blanks[0] else " ", text)
    text = _REMARK.sub("", _ABOUT.sub("", text))
    lines = {line.strip() for line in text.split("\n") if line.strip()}
    text = plain_spelling(_MONEY.sub("", lines.pop() if len(lines) == 1 else text))
    if not _HAS_VALUE.search(text):
        return text, ""
    text = _THOUSANDS.sub(lambda number: re.sub(r"[^\d+-]", "", number[1]), text)
    unwrapped = _WRAPPED.sub(r" \1 ", text)
    bare = _BEARING.sub(r"\1", _BRACED.sub(r" \1 ", unwrapped))
    if (named := _NAMED.match(bare)) is not None and _HAS_VALUE.search(bare, named.end()):
        bare = bare[named.end() :]
    bare = _IN_BRACKETS.sub(r" \1", bare)
    if (point := _POINT.match(bare)) is not None:
        bare = bare[point.end() :]
    if (turned := _TURNED.fullmatch(bare)) is not None:
        bare = turned[1]
    unit = ""
    if (counted := _COUNTED.fullmatch(bare.strip())) is not None and _UNIT.search(bare) is None:
        return counted[1], unit
    if (found := _UNIT.search(bare)) is not None and _HAS_VALUE.search(bare[: found.start() + 1]):
        value = bare[: found.start(1)].strip(" ~.").removesuffix("\\").strip()
        bare, unit = value or bare, _canonical(found[1])
    return _PRODUCT.sub(r"\1 \\cdot ", bare.strip() if bare != unwrapped else text), unit


def _canonical(unit: str) -> str:
    """A unit in its one spelling: ``cm2`` for ``square centimeters``; nothing where it names no unit."""
    unit = re.sub(r"\s*\bper\b\s*", "/", unit.strip())
    unit = re.sub(r"^(?:square|sq\.?)\s*(\S+)", r"\1^2", re.sub(r"^cubic\s*(\S+)", r"\1^3", unit))
    unit = re.sub(r"[\s^{}]", "", unit.replace("\u00b2", "2").replace("\u00b3", "3"))
    parts = []
    for part in unit.split("/"):
        name, power = re.fullmatch(r"(.*?)([23]?)", part).groups()  # type: ignore[union-attr]
        known = next((short for short, others in _NAMES.items() if name == short or _is_one_of(name, others)), name)
        if not known:
            return ""
        parts.append(known + power)
    return "/".join(parts)


def _is_one_of(name: str, spellings: str) -> bool:
    return any(re.fullmatch(one, name) for one in spellings.split())
