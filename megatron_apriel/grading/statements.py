"""The places where a response says its answer, from which letters are read.

In the order in which they can be trusted: behind the last label such as ``Answer:``, a heading or a tag; in the last
box; behind the last "the answer is"; behind the word with an arrow or a dash; behind ``Conclusion:`` or "that leaves".
What stands below the box comes before it. Signs of other scripts are plain ones then, and tokens that end a turn are
gone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from megatron_apriel.grading.boxed import boxes, last_boxed
from megatron_apriel.grading.final_answer import ANSWER, is_supposed
from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.grading.spelling import without_end_tokens

LONGEST = 300
"""Letters of a place that are looked at; an answer stands at its beginning."""
_PLACES = 20
"""Of a kind that are looked at, from the end on."""
_PLAIN = str.maketrans({
    **{chr(0xFF21 + place): letter for place, letter in enumerate(LETTERS)},
    **{chr(0x24B6 + place): letter for place, letter in enumerate(LETTERS)},
    "\uff08": "(", "\uff09": ")", "\u3010": "[", "\u3011": "]", "\uff1a": ":", "\uff0c": ",", "\u3001": ",",
    "\uff0e": ".", "\u3002": ".", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\xa0": " ", "\u200b": "",
    "\u2705": "", "\u2714": "", "\u2611": "", "\u27a1": "", "\ufe0f": "", "\U0001f449": "",
})  # fmt: skip
"""Signs of other scripts, letters in circles, and pictures that point to an answer."""
_LABEL = re.compile(
    rf"(?im)(?<![a-z])(?:{ANSWER})(?:(?:\s+|_)(?!options|choices)[a-z]{{2,10}}){{0,3}}[*_`\"'\]]*\s*:|"
    rf"\[(?:{ANSWER})\]|<(?:\w{{1,20}}_)?answer>|\bans\.(?=\s)|^[ \t#*_]*(?:final |correct )?answers?[ \t#*_]*$|"
    r"^A:(?=[ \t*(]*[A-Z][ \t*).]*$)"
)
"""Words before an answer, a heading above it, or a tag; of question and answer, "A:" before a letter alone."""
_POINTED = re.compile(
    rf"(?im)(?<![a-z])(?:{ANSWER})[*_`]*\s*(?:=>|->|[\u2192\u21d2|]|[-\u2013\u2014](?=\s)|=(?=[\s*(]*[A-Z][\s*.)]*$))"
)
"""The word and a sign that points from it, which stand in other sentences too."""
_HEADED = "choice|option|selection|letter|decision|conclusion|solution|result|correct"
_OTHER = re.compile(
    rf"(?im)^[ \t#>*_\"'{{-]*"
    rf"(?:(?:(?:my|the|final|best|correct|right|selected|chosen)[ _]){{1,2}}(?:{_HEADED})s?|{_HEADED})[*_`\"']*\s*:|"
    r"\b(?:that|this|which)\s+leaves(?:\s+us)?(?:\s+(?:with|only))?\s*:?"
)
"""Words that stand before other things too."""
_IS = re.compile(
    rf"(?i)(?:\b(?:{ANSWER}|option|choice|letter|(?:correct|right|best) (?:options|choices|letters)|"
    r"opci\xf3n|alternativa|variant)"
    r"(?:\s+[^\W\d]\w{0,19}){0,6}?"
    r"(?:\s+\([^()\n]{1,60}\))?\s+"
    r"(?:is(?=n't)|(?:is|are|would be|should be|must be|ist|lautet|est|es|\xe9|\xe8|l\xe0|\u0647\u064a|\u2014)(?!\w))|"
    r"(?:\u7b54\u6848|\u9009\u9879|\u9078\u9805|\u7b54\u3048|\u6b63\u89e3)\s*[\u662f\u4e3a\u70ba\u306f]|"
    r"\uc815\ub2f5\uc740|\u5e94?[\u9009\u9078][\u62e9\u64c7]?|"
    r"\b(?:I|we|let's)(?:\s+would|\s+will|'d|'ll|'m)?\s+(?:choose|select|pick|say|answer|guess|go(?:ing)? with))\s*:?"
)


class Statement(NamedTuple):
    """What stands in a place, whether it is labelled as an answer, and where it begins; -1 where it is a box's."""

    said: str
    is_label: bool
    place: int


def plain_signs(text: str) -> str:
    """A response with plain signs in place of other scripts', and without tokens that end a turn."""
    return without_end_tokens(text.translate(_PLAIN))


def statements(text: str) -> Iterator[Statement]:
    """The places that say an answer, the more trustworthy first."""
    labels, others = (
        _behind(_LABEL, text),
        [one for pattern in (_IS, _POINTED, _OTHER) for one in _behind(pattern, text)],
    )
    if (boxed := last_boxed(text)) is None:
        yield from (*labels, *others)
        return
    box = boxes(text)[-1]
    begin = text.rfind("\n", 0, box.begin)
    end = text.find("\n", box.end) if "\n" in text[box.end :] else len(text)
    yield from (one for one in (*labels, *others) if one.place > end)
    yield from (one for one in labels if begin < one.place <= end)
    yield Statement(boxed[:LONGEST], True, -1)
    yield from (one for one in labels if one.place <= begin)
    yield from (one for one in others if one.place <= end)


def _behind(pattern: re.Pattern[str], text: str) -> list[Statement]:
    """What stands behind the last places where a pattern matches, from the end on."""
    places = reversed(deque(pattern.finditer(text), maxlen=_PLACES))
    return [
        Statement(_line_behind(text, match.end()), pattern in (_LABEL, _POINTED), match.end())
        for match in places if not is_supposed(text, match)
    ]  # fmt: skip


def _line_behind(text: str, place: int) -> str:
    """What stands behind a place on its line; where nothing does, the next line with a word."""
    said, _, behind = text[place : place + 2 * LONGEST].partition("\n")
    return (said if said.strip(" \t\r*_`$:") else behind.lstrip().partition("\n")[0])[:LONGEST]
