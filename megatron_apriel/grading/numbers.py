"""Whole numbers as people and models write them, compared without a limit on their digits."""

from __future__ import annotations

import re

_AROUND = re.compile(r"\\(?:,|!|;|:|\s|left|right|quad|qquad)|[$\s]|\{,\}|\^\{?\\circ\}?|\\%")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}\\]*)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+", re.ASCII)
_WHOLE = re.compile(r"([+-]?)(?=\d)0*+(\d*+)(?:\.0*+)?", re.ASCII)


def whole_number(text: str) -> str | None:
    """A whole number in its one spelling: ``70`` for ``070``, ``+70``, ``70.0``, ``$70$``, ``x = 70``; None if none.

    Thousands may be divided: ``1,234``, ``1{,}234``.
    """
    plain = _AROUND.sub("", _WORDS.sub(r"\1", text)).rpartition("=")[2].replace("\u2212", "-")
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    found = _WHOLE.fullmatch(plain)
    if found is None:
        return None
    return "-" * (found[1] == "-") + found[2] if found[2] else "0"
