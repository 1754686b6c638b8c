"""The option that a response names, where a prompt asks for a last line ``ANSWER: X``, which no published rule reads.

Models put marks of Markdown or LaTeX around the letter, write the option's text beside it or in its place, answer in
the question's language, or leave the line out. What they say is looked for in the order in which it can be trusted:

1. behind the last label such as ``Answer:`` that something can be read behind,
2. in the last box, if nothing of this list stands below it,
3. behind the last "the answer is", or before the last "is the correct answer", whichever comes later,
4. a response that is one line and begins with a letter or an option's text, or lines that begin with one letter only,
5. in the last line, the only option in brackets, in bold or behind the word "option"; in the last line with the text
   of any option, the only such option; the one whose value the response concludes; the only letter with which its last
   sentence begins or ends,
6. in all lines, the only option in brackets and so on, or whose text occurs.

Who says that it is not A but B names B; two letters in one place are two answers, so none; a refusal names nothing:
no letter is taken out of words, as Artificial Analysis' last patterns take the I of "I'm sorry".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.option_texts import Options, only
from megatron_apriel.grading.spelling import TEXT_COMMANDS, without_text_commands
from megatron_apriel.grading.statements import LONGEST, plain_signs, statements

_ALIKE = {"\u0410": "A", "\u0412": "B", "\u0421": "C", "\u0415": "E"}
"""Cyrillic letters that look like Latin ones."""
_RIGHT = re.compile(
    r"([A-Z])[)\]}*_`$\\]*\s+(?:is|would be|(?:seem|appear)s to be|must be)\s+(?:indeed\s+|therefore\s+|clearly\s+)?"
    r"the\s+(?:\w{1,12}\s+)?(?:correct|right|best|most\s+\w{1,20})\s+(?:\w{1,12}\s+)?(?:answer|option|choice)"
)
_WEAKLY_RIGHT = re.compile(
    r"(?<![A-Za-z0-9])(?<![A-Z], )([A-Z])[)\]}*_`$\\]*\s+is\s+(?:the\s+)?(?:correct|right|answer)(?!\w)"
)
_LEAD = re.compile(
    r"(?:[\s*_`$~(){}\[\]<>\"'#:=\-\u2013\u2014\xab\xbb]|\\[(\[,! ]|"
    rf"\\(?:boxed|fbox|bm|{TEXT_COMMANDS})(?![a-z])|"
    r"(?i:the|is|it's|it|my|final|correct|right|best|answer|options?|choices?|letter|label|most|likely|probably|either|"
    r"would|be|should|thus|so|therefore|la|le|die|opci\xf3n|lettre|letra|a(?=\s+(?:letra|[a-j](?![\w'])))|"
    r"r\xe9ponse|respuesta|resposta|risposta|antwort|alternativa)(?![A-Za-z])|"
    r"\u9009\u9879|\u9078\u9805|\u662f|\u4e3a)*+"
)
_UNSPACED = r"\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
"""Signs of Japanese, Chinese and Korean, whose words follow a letter without a space."""
_LETTER = re.compile(
    rf"([A-Z\u0410\u0412\u0421\u0415])(?![^\W_{_UNSPACED}]|_[A-Za-z0-9{{]|'\w|\s+[=^<>])|"
    r"([a-z])(?=[)\].:*_`$}\\]*\s*$|[)\].:]\S{0,3}\s)"
)
"""A capital that is no part of a word, an index or an equation; a small letter with a mark behind it, or alone."""
_AND = re.compile(
    r"[)\]}.*_`$\\\s]*(?:,|/|&|\+|;|(?:and|or|et|ou|y|o|und|oder)\b|\u548c|\u6216)\s*(?:and\s+|or\s+)?"
    r"(?i:option\s+|choice\s+)?[(\[*_$\\{]*([A-Z])(?![A-Za-z0-9_']|\s+(?!and\b|or\b)[a-z])"
)
_NOT_ANOTHER = re.compile(r",?\s+(?:and not|not|rather than|instead of)\s.*", re.DOTALL)
_NOT = re.compile(r"(?i)(?:not|n't|isn't|neither|nor|none|nicht|pas|no es|\u4e0d\u662f)\b")
_BUT = re.compile(r"(?i)\b(?:but|rather|instead|it(?:'s| is)|sondern|mais|sino)\b\s*(?:rather|instead)?|\u800c\u662f")
_PRONOUN = re.compile(
    r"I\s+[a-z]|"
    r"A\s+(?!(?:is|are|was|has|and|or|because|since|as|but|not|for|which|with|rather|instead|over|only|alone|must|best|"
    r"to|of|in|on|at|than|the|it|this|that|there|[a-z]+[^aisu\W]s)\b)[a-z]"
)
"""An "I", or an "A" before a noun: before a verb, which ends in s, it is a letter."""
_CLOSES = re.compile(
    r"(?i)[\s*_#>$\\(]*(?:(?:so|thus|therefore|hence|finally|overall|final|in conclusion|in summary|"
    r"it(?:'s| is| must be| should be| would be| has to be))(?!\w)[\s,:*_]*|(?:=>|->|[\u2192\u21d2\u2234])\s*)++"
)
_CLOSED = re.compile(r"([A-Z])[)\]}*_`$\\\"']*(?:\s*$|[.:,]+[)\]}*_`$\\\"']*(?:\s|$))")
_BEGINNING = re.compile(
    r"[\s*_#>(\[$\\{`\"-]*(?:(?i:option|choice)\s+)?[(\[*_]*([A-Z])(?:[*_]*[)\].:,;]|[*_`$}\\]*\s+[-\u2013\u2014]\s|"
    r"[*_`$})\]\\]*\s*$|\s+is\b(?!\s+(?:wrong|false|incorrect|not|out)\b))"
)
_ALONE = re.compile(
    rf"(?:[\s*_`$(\[{{<\"']|\\(?:boxed|{TEXT_COMMANDS})(?![a-z])|\\)*+"
    r"([A-Za-z])[\s*_`$)\]}>\\\"'.]*"
)
_MENTIONED = re.compile(
    r"\(([A-Z])\)|(?i:\boption|\bchoice|\banswer)\s+[*_`\"']*([A-Z])(?![A-Za-z0-9_'])|"
    r"(?i:\boption|\bchoice)\s+\(?([a-z])\)?(?=\s+is\s+(?:the\s+)?(?:correct|right|best)\b|[.*]{0,4}\s{0,3}$)|"
    r"\*\*\(?([A-Z])(?:[.):]+(?=\s)|[.):]*\*\*)",
    re.MULTILINE,
)
"""In brackets, behind a word, or in bold."""
_STANDING = re.compile(r"(?<![\w'\\^=+~\xb0])(?<![\d=+] )(?<!\w\()([A-Z])(?![\w']|\s*[=^<>+_({\\])")
"""A capital that is no part of a word, a unit or a formula."""
_BEFORE = re.compile(r"(?:^|[,;:.!?>\u2192])[\s*_`$(\[\"'#>-]*\Z")
_BEHIND = re.compile(r"[)\]}*_`$\"']*(?:[.!?;]|\s*\Z)")
_SAID = re.compile(r"(?:\bis|\bbe|'s):?[\s*_`$(\[{\"']{0,9}([A-Z])[)\]}*_`$\"']{0,9}[.!]?\s*\Z")
"""What a sentence ends with, which says that something is it."""
_NUMBERS = re.compile(r"[.):]+\s+\w")
"""Behind a letter that numbers the entry of a list."""
_DENIES = re.compile(r"(?i)\b(?:not|cannot|neither|nor|none|unclear|unable)\b|n't\b")
_NEXT_SENTENCE = re.compile(r"(?<!^\d\.)(?<=[a-z\d)$}*][.!?])\s+(?=[A-Z*(])")
_ENTRY = re.compile(r"\s*\w[.)]\s")
"""The beginning of a list's entry, which names what the list is of."""
_LINES = 20
"""Of a response that may conclude it, from the end on."""


def named_option(text: str, options: int = 26, choices: Sequence[str] = ()) -> str | None:
    """The letter of the option that a response names; several letters where it names several in one place.

    Args:
        text: the final response.
        options: how many there are.
        choices: their texts, where they are known.
    """
    text = plain_signs(text)
    known = Options(options, choices)
    right = deque(_RIGHT.finditer(text), maxlen=1)
    line, sentence = _last_line(text), _last_sentence(text)
    is_labelled = False
    for said, is_label, place in statements(text):
        if right and not is_label and place < right[0].start():
            break
        is_labelled |= is_label and place > len(text.rstrip()) - len(line)
        if letters := _read(said, known, is_label):
            return letters
        if is_label and (letters := _mentioned(said, known) or _standing(said, known)):
            return letters
    if right:
        return right[0][1]
    if is_labelled and line.rpartition(":")[2].strip(" *_`$"):
        return None
    return (
        only(match[1] for match in _WEAKLY_RIGHT.finditer(text))
        or _closing(sentence, known)
        or next(filter(None, (_closing(one, known) for one in _last_lines(text))), None)
        or _by_lines(text, known)
        or _mentioned(line, known)
        or known.last_within(_last_lines(text))
        or known.same(final_answer(text) or "")
        or (None if "\n" in text.strip() and _ENTRY.match(sentence) else _standing(sentence, known))
        or _mentioned(text, known)
        or known.within(text)
    )


def _read(said: str, options: Options, is_label: bool) -> str | None:
    """The letters at the beginning of a statement, or that of the option whose text it is."""
    if by_text := options.same(said):
        return by_text
    said = without_text_commands(said)
    place = lead.end() if (lead := _LEAD.match(said)) else 0
    if _NOT.match(said, place):
        but = _BUT.search(said, place)
        return None if but is None else _read(said[but.end() :], options, is_label)
    letter = _LETTER.match(said, place)
    is_sure = is_label and not options.have_texts
    if letter is None or ((not is_sure or said[place] == "I") and _PRONOUN.match(said, place)):
        by_text = options.within(said) or options.within(_NOT_ANOTHER.sub("", said))
        return by_text or (options.containing(said) if is_label else None)
    found = _ALIKE.get(letter[0], letter[0].upper())
    if (other := _other(said, letter.end(), found, options)) is not None:
        return found + other
    if found not in options.letters:
        is_function = said[letter.end() : letter.end() + 1] == "("
        return options.within(said) or (None if is_function else options.named(found))
    return found


def _other(said: str, place: int, found: str, options: Options) -> str | None:
    """Another letter that is named with the one before a place."""
    other = _AND.match(said, place)
    return other[1] if other is not None and other[1] != found and other[1] in options.letters else None


def _closing(line: str, options: Options) -> str | None:
    """The letter of a line that is "so" or its like with a letter, or "not A but" one."""
    line = without_text_commands(line[:LONGEST])
    if _NOT.match(line):
        return _read(line, options, is_label=False)
    if (closes := _CLOSES.match(line)) is None:
        return None
    lead = _LEAD.match(line, closes.end())
    closed = _CLOSED.match(line, closes.end() if lead is None else lead.end())
    if closed is None or closed[1] not in options.letters:
        return None
    return closed[1] + (_other(line, closed.end(1), closed[1], options) or "")


def _by_lines(text: str, options: Options) -> str | None:
    """The letter with which a line begins, if the lines that begin with one agree; or one that is a line of its own."""
    lines = [line[:LONGEST] for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if len(lines) == 1 and (alone := _ALONE.fullmatch(lines[0])):
        return options.named(alone[1].upper())
    if len(lines) == 1 and (by_text := options.same(lines[0])):
        return by_text
    if (first := _BEGINNING.match(lines[0])) and (other := _other(lines[0], first.end(1), first[1], options)):
        return options.same(lines[0]) or first[1] + other
    begun = [match[1] if (match := _BEGINNING.match(line)) else None for line in lines]
    begun = [letter if letter and letter in options.letters else None for letter in begun]
    if (one := only(letter for letter in begun if letter)) is not None:
        return one
    if begun[-1] and len(lines) > 1 and lines[-2].rstrip().endswith(":"):
        return begun[-1]
    if (alone := _ALONE.fullmatch(lines[0])) or (alone := _ALONE.fullmatch(lines[-1])):
        return alone[1].upper()
    return options.at_beginning(lines[0])


def _mentioned(said: str, options: Options) -> str | None:
    """The only option that is mentioned, however often."""
    letters = (match[match.lastindex or 0].upper() for match in _MENTIONED.finditer(said))
    return only(letter for letter in letters if letter in options.letters)


def _standing(sentence: str, options: Options) -> str | None:
    """The only letter that stands alone in a sentence, if it begins or ends the sentence or a part of it."""
    found = [
        letter for letter in _STANDING.finditer(sentence)
        if letter[1] in options.letters and not _PRONOUN.match(sentence, letter.start())
    ]  # fmt: skip
    if _DENIES.search(sentence):
        return None
    if found and (said := _SAID.search(sentence)) and said[1] == found[-1][1]:
        return said[1]
    if not any(_is_at_edge(sentence, letter) for letter in found):
        return None
    return only(letter[1] for letter in found)


def _is_at_edge(sentence: str, letter: re.Match[str]) -> bool:
    if _NUMBERS.match(sentence, letter.end()):
        return False
    before = sentence[max(letter.start() - 12, 0) : letter.start()]
    return _BEFORE.search(before) is not None or _BEHIND.match(sentence, letter.end()) is not None


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def _last_lines(text: str) -> Iterator[str]:
    """The last lines with something on them, from the end on."""
    return islice(filter(str.strip, reversed(text.split("\n"))), _LINES)


def _last_sentence(text: str) -> str:
    return _NEXT_SENTENCE.split(_last_line(text)[-LONGEST:])[-1]
