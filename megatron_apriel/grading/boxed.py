"""The answer that stands in the last box of a text, ``\\boxed{...}``, its braces balanced by counting."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"(?P<box>\\\\?(?:boxed|fbox|framebox)\s*\{)|\\[\s\S]|[{}]")
"""A box that opens, also with the backslash written twice; whatever a backslash escapes; a brace."""


def last_boxed(text: str) -> str | None:
    """What is in the last box that is closed, without white space around it; of boxes in one another, the inner."""
    box = last_box(text)
    return None if box is None else text[box].strip()


def last_box(text: str) -> slice | None:
    """Where what is in that box stands."""
    open_braces: list[int] = []  # where what is in a box begins; 0 for another brace
    last = (0, 0)
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            begun = open_braces.pop() if open_braces else 0
            if begun > last[0]:
                last = (begun, token.start())
        elif token[0] == "{":
            open_braces.append(0)
        elif token["box"]:
            open_braces.append(token.end())
    return slice(*last) if last[0] > 0 else None


def is_balanced(text: str) -> bool:
    """Whether every brace is closed."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += token[0] == "{" or token["box"] is not None
        depth -= token[0] == "}"
        if depth < 0:
            return False
    return depth == 0
