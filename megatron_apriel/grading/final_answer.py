"""The answer that a response says at its end: in its last box, behind "the answer is", or as all that it says."""

from __future__ import annotations

import re

from megatron_apriel.grading.boxed import is_balanced, last_boxed

ANSWER = (
    "answers?|ans|antwort|r\xe9ponse|respuesta|resposta|risposta|odpowied\u017a|"
    "\u043e\u0442\u0432\u0435\u0442|\u7b54\u6848|\u7b54\u3048|\uc815\ub2f5|\u0627\u0644\u0625\u062c\u0627\u0628\u0629"
)
"""The word, in the languages of published questions and a few more."""
_LABEL = re.compile(
    rf"(?im)(?<![a-z])(?:{ANSWER})(?P<quote>\")?(?: (?:to|for|of) (?:\w{{1,20}} ){{1,6}}?)?\**\s*"
    r"(?:(?:is|ist|est|es|\xe9|\xe8)(?!\w)|[:=\uff1a\u662f\u4e3a\u70ba]|(?:must|should|would|will) be(?= *[\d$\\(*-]))"
    r"(?: (?:therefore|thus|then|simply|just|equal to)(?!\w))?\**[ \t]*:?|"
    r"^[ \t#*]*(?:final[ \t]+)?answer[ \t*]*$|<answer>|^[ \t#]*\*\*(?:final )?answer:?\*\*"
)
"""Words before an answer, a heading above it, or a tag."""
_UNBRACED = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_AROUND = " \t\r*`"
_FIELD = re.compile(r"\s*(?:\"([^\"]+)\"|([^\",}\]]+))")
_END = re.compile(r"</answer>.*|(?<=\d)!+\Z")
"""A tag that closes, and what is called out behind a number in a sentence."""
_BARE = re.compile(
    r"[-+\u2212$\xa3\u20ac]{0,2}[\d.,]{1,40}"
    r"(?: ?[%\xb0]| ?[A-Za-z]{1,20}[23\xb2\xb3]?| [A-Za-z]{1,20} [A-Za-z]{1,20})?|"
    r"(?!.*(?<![\\A-Za-z])[A-Za-z]{2,})(?=.*[\d\\]).+"
)
"""A number with its unit, or a formula: no words but commands of LaTeX."""
_BARE_LENGTH = 100


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last ``answer is`` or ``answer:`` on its line, or on the next with a word.

    Of a line with one formula between dollars and no number beside it, the formula. A response that is nothing but a
    number or a formula is its own answer.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed or None
    label = None
    for found in _LABEL.finditer(text):
        label = found
    if label is None:
        if unbraced := _UNBRACED.findall(text):
            return str(unbraced[-1]).rstrip(".,;")
        bare = text.strip(_AROUND + "\n").removesuffix(".").strip(_AROUND)
        return bare if 0 < len(bare) <= _BARE_LENGTH and _BARE.fullmatch(bare) and is_balanced(bare) else None
    said, _, behind = text[label.end() :].partition("\n")
    if not said.strip(_AROUND):
        said = behind.lstrip(_AROUND + "\n").partition("\n")[0]
    said = _END.sub("", said.rstrip(_AROUND))
    if label["quote"]:  # a field of JSON
        field = _FIELD.match(said)
        return None if field is None else (field[1] or field[2]).strip() or None
    before, _, inside = said.partition("$")
    formula, closing, after = inside.partition("$")
    if closing and formula.strip() and not any(letter.isdigit() or letter == "$" for letter in before + after):
        return formula.strip()
    return said.strip(_AROUND).removesuffix(".").strip(_AROUND) or None
