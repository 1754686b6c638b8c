"""The answer that a response says at its end: in its last box, behind "the answer is", or as all that it says."""

from __future__ import annotations

import re
from collections import deque

from megatron_apriel.grading.boxed import is_balanced, last_boxed
from megatron_apriel.grading.spelling import without_end_tokens

ANSWER = (
    "answers?|ans|antwort|r\xe9ponse|respuesta|resposta|risposta|odpowied\u017a|"
    "\u043e\u0442\u0432\u0435\u0442|\u7b54\u6848|\u7b54\u3048|\u6b63\u89e3|\uc815\ub2f5|\ub2f5|\u0627\u0644\u0625\u062c\u0627\u0628\u0629|"
    "\u0909\u0924\u094d\u0924\u0930|cevap|jawaban|\u0111\xe1p \xe1n"
)
"""The word, in the languages of published questions and a few more."""
_NAMED = rf"(?<![a-z])(?:{ANSWER})(?P<quote>[\"'])?(?: (?:to|for|of) (?:\w{{1,20}} ){{1,6}}?)?\**\s*"
_LABEL = re.compile(
    rf"(?im){_NAMED}"
    r"(?:(?:is|ist|est|es|\xe9|\xe8)(?!\w)|[:=\uff1a\u662f\u4e3a\u70ba\u306f]|"
    r"(?:must|should|would|will) be(?= *[\d$\\(*-]))"
    r"(?: (?:therefore|thus|then|simply|just|equal to)(?!\w))?\**[ \t]*:?|"
    r"^[ \t#*]*(?:final[ \t]+)?answer[ \t*]*$|<answer>|^[ \t#]*\*\*(?:final )?answer:?\*\*[ \t]*:?"
)
"""Words before an answer, a heading above it, or a tag."""
_WEAK_LABEL = re.compile(rf"(?im){_NAMED}(?:\u2192|[-\u2013\u2014](?= )|of(?= *(?:\*\*|\$|\\\(|-?\d)))\**[ \t]*:?")
"""What stands in other sentences too, "this answer - it is whole - ...", and counts where there is no other label."""
_UNBRACED = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_AROUND = " \t\r*`"
_FIELD = re.compile(r"\s*(?:\"([^\"]+)\"|'([^']+)'|([^\"',}\]]+))")
_END = re.compile(r"</answer>.*|(?<=\d)!+\Z")
"""A tag that closes, and what is called out behind a number in a sentence."""
_DISPLAYED = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
_OPENED = re.compile(r"\s*(\$\$?|\\[\[(])\s*\n")
"""A formula that begins on a line of its own."""
_BEFORE = re.compile(r"\}?(?:\s|~|\\(?:q?quad(?![a-z])|[,;: ]))*")
"""Behind ``\\text{Answer:``."""
_REMARK = re.compile(
    r"[\s(*]{0,9}\bwithout (?:the )?quot(?:es|ation marks)\b.*|"
    r"(?<=[\w$})%])\s*\((?=[^()]{0,60}[A-Za-z]{3})[A-Za-z ,'-]{3,60}\)[.*$ ]*\Z"
)
"""Of a prompt that is repeated; and words in brackets at the end."""
_REASON = re.compile(r"(?<=[\d$)}%]),?\s(?:which|since|because|rather than|not)\s.*")
"""Words behind a value that do not belong to it."""
_STATED = re.compile(r"(?i)(?:\b(?:is|are|equals?)\b|=)(?: (?:equivalent|equal) to| approximately| about| therefore)?")
_SEVERAL = re.compile(r"(?:\b(?:is|are|equals?)\b|=)[^A-Za-z\d]{0,9}\d[^=]{0,40}?\b(?:and|or)\b|=.*=")
"""Two values, or an equation in steps."""
_SENTENCE = re.compile(r"(?i)(?![\s*$\\(]*(?:[-+]?\d|(?:yes|no|true|false)\b)).*\b(?:is|are|equals?)\b")
"""Words that say what something is, and do not begin with the answer."""
_CONCLUDES = re.compile(
    r"(?i)[\s*#>\d.-]{0,9}(?:(?:therefore|thus|hence|so|finally|consequently|in conclusion|overall|we conclude that)\b|"
    r"(?:the )?(?:final )?result(?: is\b|\**\s?[:=])|=>|[\u2192\u21d2\u2234]|"
    r"\u56e0\u6b64|\u6240\u4ee5|\u6545|\u7efc\u4e0a)"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PLACES = 20
"""Of labels that are looked at, from the end on."""
_LONGEST = 2_000
"""Letters of a formula on lines of its own, or of a sentence."""
_BARE = re.compile(
    r"[-+\u2212$\xa3\u20ac]{0,2}[\d.,]{1,40}"
    r"(?: ?[%\xb0]| ?[A-Za-z]{1,20}[23\xb2\xb3]?| [A-Za-z]{1,20} [A-Za-z]{1,20})?|"
    r"(?!.*(?:(?<![\\A-Za-z])[A-Za-z]{2,}|[\u3040-\u9fff].*\d))(?=.*[\d\\]).+"
)
"""A number with its unit, or a formula: no words but commands of LaTeX."""
_BARE_LENGTH = 100


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last ``answer is`` or ``answer:`` on its line, or on the next with a word.

    Of a line with one formula between dollars and no number beside it, the formula; of a sentence, what it says that
    something is. Where the last such words stand before nothing, or before what is cut off, those before them count.
    A response that is nothing but a number or a formula is its own answer, and so is one that its last line concludes.
    """
    text = without_end_tokens(text)
    if (boxed := last_boxed(text)) is not None:
        return boxed or None
    if (behind := labelled_answer(text)) is not None:
        return behind or None
    if unbraced := _UNBRACED.findall(text):
        return str(unbraced[-1]).rstrip(".,;")
    bare = text.strip(_AROUND + "\n").removesuffix(".").strip(_AROUND)
    return _unwrapped(bare) if _is_bare(bare) else _concluded(text)


def labelled_answer(text: str) -> str | None:
    """What follows the last words before an answer; empty where nothing does, None where there are no such words."""
    behind = None
    for pattern in (_LABEL, _WEAK_LABEL):
        if labels := deque(pattern.finditer(text), maxlen=_PLACES):
            said = [one for label in reversed(labels) if (one := _behind(text, label))]
            behind = next(filter(is_balanced, said), said[0] if said else "")
        if behind:
            break
    return behind


def _is_bare(text: str) -> bool:
    return 0 < len(text) <= _BARE_LENGTH and _BARE.fullmatch(text) is not None and is_balanced(text)


def _concluded(text: str) -> str | None:
    """What the last line says that something is, if it begins with "therefore" or its like."""
    line = text.rstrip().rpartition("\n")[2].strip(_AROUND)
    if len(line) > _LONGEST or (concludes := _CONCLUDES.match(line)) is None:
        return None
    if (stated := _stated(line.removesuffix("."))) is not None:
        return stated
    value = _unwrapped(_trimmed(line[concludes.end() :].lstrip(" ,:*")))
    return value if _is_bare(value) and _WORD.search(value) is None else None


def _stated(sentence: str) -> str | None:
    """What stands behind the last "is", if that is nothing but a number or a formula."""
    stated = deque(_STATED.finditer(sentence), maxlen=1)
    if not stated or _SEVERAL.search(sentence):
        return None
    value = _trimmed(sentence[stated[0].end() :])
    inside = _unwrapped(value)
    return inside if _is_bare(inside) else None


def _unwrapped(value: str) -> str:
    return value[1:-1].strip() if value[:1] == value[-1:] == "$" and value.count("$") == 2 else value


def _behind(text: str, label: re.Match[str]) -> str | None:
    """What is said behind a label."""
    if (opened := _OPENED.match(text, label.end())) is not None:
        formula, closing, _ = text[opened.end() : opened.end() + _LONGEST].partition(_DISPLAYED[opened[1]])
        if closing:
            return " ".join(formula.split()).removesuffix(".") or None
    said, _, behind = text[label.end() :].partition("\n")
    if not said.strip(_AROUND):
        said = behind.lstrip(_AROUND + "\n").partition("\n")[0]
    said = _END.sub("", said.rstrip(_AROUND))
    if label["quote"]:  # a field of JSON
        field = _FIELD.match(said)
        return None if field is None else (field[1] or field[2] or field[3]).strip() or None
    said = _trimmed(said)
    before, _, inside = said.partition("$")
    formula, closing, after = inside.partition("$")
    if closing and formula.strip() and not any(letter.isdigit() or letter == "$" for letter in before + after):
        return formula.strip()
    if len(said) <= _LONGEST and _SENTENCE.match(said) and (value := _stated(said)) is not None:
        return value
    return said or None


def _trimmed(said: str) -> str:
    """Without marks around it, what belongs to a formula that the label stands in, and remarks."""
    if not is_balanced(said) or said[:1] in "\\~":
        said = said[_BEFORE.match(said).end() :]  # type: ignore[union-attr]
    said = _REMARK.sub("", said).strip(_AROUND).rstrip(".\u3002").strip(_AROUND)
    for opening, closing in (("\\[", "\\]"), ("\\(", "\\)")):
        if closing in said and opening not in said:
            said = said.removesuffix(closing)
    if said.count("$$") == 1 or said.count("$") == 1:
        said = said.removesuffix("$$").removesuffix("$")
    said = _REASON.sub("", said)
    return said.strip(_AROUND).removesuffix(".").strip(_AROUND)
