"""Inequalities in one variable as intervals: where the right answer is an interval, math-verify takes none for it."""

from __future__ import annotations

import re

from megatron_apriel.grading.spelling import TEXT_COMMANDS

_SIGNS = (
    (re.compile(r"\\(?:leqslant|leqq|leq|le)(?![a-z])|\u2264|<="), " \u2264 "),
    (re.compile(r"\\(?:geqslant|geqq|geq|ge)(?![a-z])|\u2265|>="), " \u2265 "),
    (re.compile(r"\\lt(?![a-z])"), " < "),
    (re.compile(r"\\gt(?![a-z])"), " > "),
)
_SET = re.compile(r"\s*\\?\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|\\vert|\||:)(.*?)\\?\}\s*")
_IN = re.compile(r"\s*[a-zA-Z]\s*(?:\\in(?![a-z])|\u2208)\s*(.+)")
_OR = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{\s*or\s*\}}|\\lor(?![a-z])|\\cup(?![a-z])|\bor\b")
_AND = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{\s*and\s*\}}|\\land(?![a-z])|\band\b|,")
_UNEQUAL = re.compile(r"\s*[a-zA-Z]\s*(?:\\neq?(?![a-z])|\u2260)\s*(\S+)\s*")
_SIGN = re.compile("([<>\u2264\u2265])")
_WIDTH = re.compile(r"\\(?:left|right|bigl|bigr|big)(?![a-z])|\\[,;!: ]")
_VARIABLE = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")
_LONGEST = 200


def is_interval(text: str) -> bool:
    """Whether a text is an interval, or several with unions."""
    parts = re.split(r"\\cup(?![a-z])|\u222a", _WIDTH.sub("", text))
    return len(text) <= _LONGEST and all(_is_pair(part.strip()) for part in parts)


def _is_pair(text: str) -> bool:
    """Whether brackets stand around all of it, and one comma between its two halves."""
    depth = commas = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        commas += letter == "," and depth == 1
        if depth <= 0 and place < len(text) - 1:
            return False
    return text[:1] in tuple("([") and text[-1:] in tuple(")]") and depth == 0 and commas == 1


def as_interval(text: str) -> str | None:
    """The interval of an inequality, or their union: ``(-2, 1]`` for ``-2 < x \\le 1``; None where it is none."""
    if len(text) > _LONGEST:
        return None
    text = _WIDTH.sub(" ", text)
    if (member := _IN.fullmatch(text)) is not None:
        return member[1] if is_interval(member[1]) else None
    if (described := _SET.fullmatch(text)) is not None:
        text = described[2]
    for sign, plain in _SIGNS:
        text = sign.sub(plain, text)
    if (unequal := _UNEQUAL.fullmatch(text)) is not None and not _VARIABLE.search(unequal[1]):
        return f"(-\\infty, {unequal[1]}) \\cup ({unequal[1]}, \\infty)"
    parts = [_one(part) or _both(_AND.split(part)) for part in _OR.split(text)]
    return None if None in parts else " \\cup ".join(part for part in parts if part is not None)


def _both(texts: list[str]) -> str | None:
    """The interval of two inequalities that hold together, one for each of its ends."""
    ends = [one for text in texts if (one := _one(text)) is not None]
    low = [one for one in ends if one.endswith(", \\infty)")]
    high = [one for one in ends if one.startswith("(-\\infty, ")]
    variables = {variable[0] for text in texts if (variable := _VARIABLE.search(text)) is not None}
    if [len(each) for each in (texts, low, high, variables)] != [2, 1, 1, 1]:
        return None
    return low[0].removesuffix("\\infty)") + high[0].removeprefix("(-\\infty, ")


def _one(text: str) -> str | None:
    pieces = [piece.strip() for piece in _SIGN.split(text)]
    places = [place for place in range(0, len(pieces), 2) if re.fullmatch("[a-zA-Z]", pieces[place])]
    if len(pieces) not in (3, 5) or len(places) != 1 or (len(pieces) == 5 and places != [2]):
        return None
    bounds = [pieces[place] for place in range(0, len(pieces), 2) if place != places[0]]
    if not all(bounds) or any(_VARIABLE.search(bound) for bound in bounds):
        return None
    low, high, opening, closing = "-\\infty", "\\infty", "(", ")"
    for place in range(1, len(pieces), 2):
        is_left = place < places[0]
        bound = pieces[place - 1] if is_left else pieces[place + 1]
        closed = pieces[place] in "\u2264\u2265"
        if (pieces[place] in "<\u2264") == is_left:
            low, opening = bound, "[" if closed else "("
        else:
            high, closing = bound, "]" if closed else ")"
    return f"{opening}{low}, {high}{closing}"
