"""What is not printed: the values of environment variables that a configuration takes in through ``${NAME}``.

Such a value may be a secret, or be part of a path that holds one. Whoever reads one gives it here with the words that
stand for it, and everything that is printed (:func:`megatron_apriel.errors.printable`) shows those words instead,
whichever room the message came from.

A word such as ``runs`` stands in sentences too. So a value is concealed wherever it stands by itself only if it looks
like nothing else: a path of several parts, or six letters and more that are no plain word. A plain word is concealed
beside a slash, and what is shorter not at all; the whole path that it is part of is given here too.

This file imports nothing of the project.
"""

from __future__ import annotations

import re

_SHORTEST = 6
_words: dict[str, str] = {}
_pattern: re.Pattern[str] | None = None


def conceal(value: str, words: str) -> None:
    """Print ``words`` in the place of ``value`` from now on."""
    global _pattern
    if value == words or (len(value) < _SHORTEST and "/" not in value.strip("/")):
        return
    _words[value] = words
    # The longest first: a path before the value that it begins with.
    _pattern = re.compile("|".join(map(_found, sorted(_words, key=lambda known: -len(known)))))


def _found(value: str) -> str:
    alone = rf"(?<!\w){re.escape(value)}(?!\w)"
    return rf"(?:(?<=/){alone}|{alone}(?=/))" if value.isalpha() else alone


def concealed(text: str) -> str:
    """``text`` without the values that are not to be printed."""
    return text if _pattern is None else _pattern.sub(lambda match: _words[match[0]], text)
