"""The answer that stands in the last box of a text, ``\\boxed{...}``, its braces balanced by counting."""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(r"(?P<box>\\\\?(?:boxed|fbox|framebox)\s*\{)|\\[\s\S]|[{}]")
"""A box that opens, also with the backslash written twice; whatever a backslash escapes; a brace."""
_JOINING = re.compile(r"[\s$]*(?:[,;]|[,;]?\s*(?:\\text\s*\{\s*)?(?:and|or)\b(?:\s*\})?)[\s$]*")
"""Between boxes that are one answer."""
_GAP = 40
"""Letters between such boxes."""


class Box(NamedTuple):
    """Where a box stands, from its backslash to its brace, and what is in it."""

    begin: int
    end: int
    inside: slice


def boxes(text: str) -> list[Box]:
    """The boxes that are closed; of boxes in one another, what is in the inner one."""
    open_braces: list[tuple[int, int] | None] = []
    found: list[Box] = []
    for token in _TOKEN.finditer(text):
        if token["box"]:
            open_braces.append(token.span())
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (opening := open_braces.pop()) is not None:
            inside = slice(opening[1], token.start())
            while found and found[-1].begin > opening[0]:
                inner = found.pop()
                inside = max(inside, inner.inside, key=lambda one: one.start)
            found.append(Box(opening[0], token.end(), inside))
    return found


def last_boxed(text: str) -> str | None:
    """What is in the last box, without white space around it; several with a comma or an "and" between them are one."""
    found = boxes(text)
    if not found:
        return None
    said = [text[found[-1].inside].strip()]
    for box, after in zip(reversed(found[:-1]), reversed(found), strict=False):
        if after.begin - box.end > _GAP or not _JOINING.fullmatch(text, box.end, after.begin):
            break
        said.append(text[box.inside].strip())
    return ", ".join(reversed(said))


def is_balanced(text: str) -> bool:
    """Whether every brace is closed."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += token[0] == "{" or token["box"] is not None
        depth -= token[0] == "}"
        if depth < 0:
            return False
    return depth == 0
