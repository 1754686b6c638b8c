"""The answer that stands in the last box of a text, ``\\boxed{...}``, its braces balanced by counting."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\\\\?(?:boxed|fbox)\s*\{|\\[\s\S]|[{}]")
"""A box that opens, also with the backslash written twice; whatever a backslash escapes; a brace."""
_LABEL = re.compile(
    r"(?im)answer(?: (?:to|for|of) (?:\w{1,20} ){1,6}?)?\**\s*(?:is|:)\**[ \t]*:?|"
    r"^[ \t#*]*(?:final[ \t]+)?answer[ \t*]*$"
)
"""Words before an answer, or a heading above it."""
_AROUND = " \t\r*`"
_BARE = re.compile(
    r"[-+\u2212$\xa3\u20ac]{0,2}[\d.,]{1,40}"
    r"(?: ?[%\xb0]| ?[A-Za-z]{1,20}[23\xb2\xb3]?| [A-Za-z]{1,20} [A-Za-z]{1,20})?|"
    r"(?!.*(?<![\\A-Za-z])[A-Za-z]{2,})(?=.*[\d\\]).+"
)
"""A number with its unit, or a formula: no words but commands of LaTeX."""
_BARE_LENGTH = 100


def last_boxed(text: str) -> str | None:
    """What is in the last box that is closed, without white space around it; of boxes in one another, the inner."""
    open_boxes: list[int] = []
    last = (-1, 0)
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            begun = open_boxes.pop() if open_boxes else 0
            if begun > last[0] and begun > 0:
                last = (begun, token.start())
        elif token[0] == "{":
            open_boxes.append(0)
        elif token[0].endswith("{") and len(token[0]) > 2:
            open_boxes.append(token.end())
    return text[slice(*last)].strip() if last[0] > 0 else None


def is_balanced(text: str) -> bool:
    """Whether every brace is closed."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += token[0].endswith("{") and token[0] != "\\{"
        depth -= token[0] == "}"
        if depth < 0:
            return False
    return depth == 0


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last ``answer is`` or ``answer:`` on its line, or on the next with a word.

    Of a line with one formula between dollars and no number beside it, the formula. A response that is nothing but a
    number or a formula is its own answer.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed or None
    ends = [label.end() for label in _LABEL.finditer(text)]
    if not ends:
        bare = text.strip(_AROUND + "\n").removesuffix(".").strip(_AROUND)
        return bare if 0 < len(bare) <= _BARE_LENGTH and _BARE.fullmatch(bare) else None
    said, _, behind = text[ends[-1] :].partition("\n")
    if not said.strip(_AROUND):
        said = behind.lstrip(_AROUND + "\n").partition("\n")[0]
    before, _, inside = said.partition("$")
    formula, closing, after = inside.partition("$")
    if closing and formula.strip() and not any(letter.isdigit() or letter == "$" for letter in before + after):
        return formula.strip()
    return said.strip(_AROUND).removesuffix(".").strip(_AROUND) or None
