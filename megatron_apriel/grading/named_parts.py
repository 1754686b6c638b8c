"""The parts of an answer that names several: domain and range, where a function rises and falls, extrema.

math-verify reads one of them and takes it for the whole answer.
"""

from __future__ import annotations

import re

from megatron_apriel.grading.intervals import is_interval
from megatron_apriel.grading.spelling import TEXT_COMMANDS

_NAMES = "domain|range|increasing|decreasing|constant|maximum|minimum|cent(?:er|re)|radius|vertex"
_NAME = re.compile(rf"(?i)(?:local\s+)?\b({_NAMES})\b")
_TEXT = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_WIDTH = re.compile(r"\\(?:q?quad|left|right)(?![a-z])|\\[,;! ]")
_AROUND = re.compile(
    r"^(?:[\s,;:.=]|\\\\|(?:and|on|at|is|are|for|the|of|function|it|interval|local|over)\b)+|"
    r"(?:[\s,;:.=]|\\\\|\b(?:and|on|at|is|are|for|the|of|function|it|interval|local|over))+$",
    re.IGNORECASE,
)
_LIST = re.compile(r"\s*(?:,|;|\band\b)\s*(?=[(\[])")


def named_parts(text: str) -> dict[str, str] | None:
    """Value by name, where an answer names at least two parts."""
    text = _WIDTH.sub(" ", _TEXT.sub(r" \1 ", text.replace("$", "")))
    names = list(_NAME.finditer(text))
    parts: dict[str, str] = {}
    for place, name in enumerate(names):
        end = names[place + 1].start() if place + 1 < len(names) else len(text)
        parts[name[1].lower().replace("centre", "center")] = _AROUND.sub("", text[name.end() : end])
    return parts if len(parts) == len(names) > 1 and all(parts.values()) else None


def listed_intervals(text: str) -> list[str]:
    """Intervals one behind the other; nothing where something else is among them."""
    parts = [part.strip() for part in _LIST.split(_WIDTH.sub(" ", _TEXT.sub(r" \1 ", text)))]
    return parts if all(is_interval(part) for part in parts) else []
