"""The answer that a response says: in its last box, behind "the answer is", or in what it concludes."""

from __future__ import annotations

import re
from collections import deque

from megatron_apriel.grading.boxed import is_balanced, last_boxed
from megatron_apriel.grading.conclusion import AROUND, LONGEST, concluded, is_value, stated, trimmed, unwrapped
from megatron_apriel.grading.spelling import without_end_tokens

ANSWER = (
    "answers?|ans|antwort|r\xe9ponse|respuesta|resposta|risposta|odpowied\u017a|"
    "\u043e\u0442\u0432\u0435\u0442|\u7b54\u6848|\u7b54\u3048|\u6b63\u89e3|\uc815\ub2f5|\ub2f5|\u0627\u0644\u0625\u062c\u0627\u0628\u0629|"
    "\u0909\u0924\u094d\u0924\u0930|cevap|jawaban|\u0111\xe1p \xe1n"
)
"""The word, in the languages of published questions and a few more."""
_NAMED = rf"(?<![a-z])(?:{ANSWER})(?P<quote>[\"'])?(?: (?:to|for|of(?! \d)) (?:\w{{1,20}} ){{1,6}}?)?\**\s*"
_LABEL = re.compile(
    rf"(?im){_NAMED}"
    r"(?:is(?=n't)|(?:is|ist|est|es|\xe9|\xe8)(?!\w)|[:=\uff1a\u662f\u4e3a\u70ba\u306f]|"
    r"(?:must|should|would|will) be(?= *[\d$\\(*-]))"
    r"(?: (?:therefore|thus|then|simply|just|equal to)(?!\w))?\**[ \t]*:?|"
    r"^[ \t#*]*(?:final[ \t]+)?answer[ \t*]*$|<(?:\w{1,20}_)?answer>|^[ \t#]*\*\*(?:final )?answer:?\*\*[ \t]*:?"
)
"""Words before an answer, a heading above it, or a tag."""
_WEAK_LABEL = re.compile(
    rf"(?im){_NAMED}(?:\u2192|[-\u2013\u2014](?= )|"
    r"of(?= *(?:\*\*|\$|\\\(|-?\d))(?![^\n]{0,80}\b(?:is|was|are|would|seems|gives)\b))\**[ \t]*:?"
)
"""What stands in other sentences too, "this answer - it is whole - ...", and counts where there is no other label."""
_DENIED = re.compile(r"(?i)\s*(?:not|n't)\b(?:[^\n]{0,200}?(?:\bbut\b|\bit(?:'s| is)\b)(?!\s+not\b)([^\n]*))?")
"""What the answer is not, and behind "but" what it is."""
_SUPPOSES = re.compile(
    r"(?i)\b(?:thought|assumed|might (?:say|think))\b[^.\n]{0,60}\Z|\b(?:incorrect|wrong|alternative)\s\Z"
)
_UNLESS = re.compile(r"(?i)\bif\b[^.\n]{0,100}\Z")
"""Before what the answer would be."""
_SAYS = re.compile(r"(?i)\b(?:is|ist|est|es|\xe9|\xe8|be)\b")
_VALUE = re.compile(r"[\d\\$]|\A\W*(?:[A-Z]|(?i:yes|no|true|false))\W*\Z")
"""Words of a sentence, which may say something else of an answer than what it is, unless there is a value behind."""
_UNBRACED = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_FIELD = re.compile(r"\s*(?:\"([^\"]+)\"|'([^']+)'|([^\"',}\]]+))")
_CALLED_OUT = re.compile(r"(?<=\d)!+\Z")
"""Behind a number in a sentence."""
_NEXT_SENTENCE = re.compile(r"(?<=[\w$)}%*])\.\s+(?=[A-Z])")
_DISPLAYED = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
_OPENED = re.compile(r"\s*(\$\$?|\\[\[(])\s*\n")
"""A formula that begins on a line of its own."""
_SENTENCE = re.compile(r"(?i)(?![\s*$\\(]*(?:[-+]?\d|(?:yes|no|true|false)\b)).*\b(?:is|are|equals?)\b")
"""Words that say what something is, and do not begin with the answer."""
_PLACES = 20
"""Of labels that are looked at, from the end on."""


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last ``answer is`` or ``answer:`` on its line, or on the next with a word.

    Of a line with one formula between dollars and no number beside it, the formula; of a sentence, what it says that
    something is. Where the last such words stand before nothing, before what is cut off or, as "the answer is even", in
    a remark, those before them count. A response without such words says what it concludes.
    """
    text = without_end_tokens(text)
    if (boxed := last_boxed(text)) is not None:
        return boxed or None
    if (behind := labelled_answer(text)) is not None:
        return behind or None
    if unbraced := _UNBRACED.findall(text):
        return str(unbraced[-1]).rstrip(".,;")
    bare = text.strip(AROUND + "\n").removesuffix(".").strip(AROUND)
    return unwrapped(bare) if is_value(bare) else concluded(text)


def labelled_answer(text: str) -> str | None:
    """What follows the last words before an answer; empty where nothing does, None where there are no such words."""
    behind = None
    for pattern in (_LABEL, _WEAK_LABEL):
        last = deque(pattern.finditer(text), maxlen=_PLACES)
        if labels := [label for label in last if not (is_supposed(text, label) or _is_denied(text, label))]:
            said = [(label, one) for label in reversed(labels) if (one := _behind(text, label))]
            whole = [(label, one) for label, one in said if is_balanced(one)] or said
            clear = [one for label, one in whole if not _SAYS.search(label[0]) or _VALUE.search(one)]
            behind = next(iter(clear), whole[0][1] if whole else "")
        if behind:
            break
    return behind


def is_supposed(text: str, label: re.Match[str]) -> bool:
    """Whether words before an answer say what somebody thought that it was, what it would be, or a wrong one."""
    pattern = _UNLESS if "would" in label[0] else _SUPPOSES
    return pattern.search(text, max(label.start() - 100, 0), label.start()) is not None


def _is_denied(text: str, label: re.Match[str]) -> bool:
    """Whether words before an answer say what it is not, and nothing else."""
    denied = _DENIED.match(text, label.end())
    return denied is not None and denied[1] is None and _SAYS.search(label[0]) is not None


def _behind(text: str, label: re.Match[str]) -> str | None:
    """What is said behind a label."""
    if (opened := _OPENED.match(text, label.end())) is not None:
        formula, closing, _ = text[opened.end() : opened.end() + LONGEST].partition(_DISPLAYED[opened[1]])
        if closing:
            return " ".join(formula.split()).removesuffix(".") or None
    said, _, behind = text[label.end() :].partition("\n")
    if not said.strip(AROUND):
        said = behind.lstrip(AROUND + "\n").partition("\n")[0]
    said = _CALLED_OUT.sub("", said.rstrip(AROUND))
    if (denied := _DENIED.match(said)) is not None and denied[1] is not None:
        said = denied[1]
    if is_value(first := trimmed(_NEXT_SENTENCE.split(said, maxsplit=1)[0])):
        said = first
    if label["quote"]:  # a field of JSON
        field = _FIELD.match(said)
        return None if field is None else (field[1] or field[2] or field[3]).strip() or None
    said = trimmed(said)
    before, _, inside = said.partition("$")
    formula, closing, after = inside.partition("$")
    if closing and formula.strip() and not any(letter.isdigit() or letter == "$" for letter in before + after):
        return formula.strip()
    if len(said) <= LONGEST and _SENTENCE.match(said) and (value := stated(said)) is not None:
        return value
    return said or None
