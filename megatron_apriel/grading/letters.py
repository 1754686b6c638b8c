"""The letter that answers a multiple-choice question, by the rules of two benchmarks, in linear time.

MMLU-Pro's official script looks for an answer in three steps and draws a letter where it finds none; here that is no
answer. Its patterns ``.*[aA]nswer:`` and ``(?!.*...)`` take quadratic time; the steps below find the same letters in
one pass each (TIGER-AI-Lab/MMLU-Pro, ``compute_accuracy.py``).

Artificial Analysis goes through nine patterns in order and takes the last match of the first that matches. The later
ones match nearly anything, any capital before a mark. The patterns are those of ``mmlu_pro_aa_v3`` and
``gpqa_diamond_aa_v3`` in nvidia-simple-evals 26.3; two are written out as code, because they take quadratic time.

evalscope's prompts ask for a last line ``ANSWER: X``, which no published rule reads: :mod:`.named_option` does, and is
asked before Artificial Analysis' patterns too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.option_texts import LETTERS, only
from megatron_apriel.grading.spelling import without_text_commands
from megatron_apriel.grading.statements import plain_signs, statements
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_FIRST_SAID = re.compile(r"answer is \(?([A-J])\)?")
_LABELLED = re.compile(r"[aA]nswer:(?=\s*([A-J]))")
_ALONE = re.compile(r"\b([A-J])\b")

_AA_LABELLED = re.compile(r"(?i)[*_]{0,2}Answer[*_]{0,2}\s*:[\s*_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])")
_CAPITAL = re.compile(r"[A-Z]")
_AA_LATER = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"answer is ([a-zA-Z])",
        r"answer is \(([a-zA-Z])\)",
        r"([A-Z])\)",
        r"([A-Z])\s+is\s+the\s+correct\s+answer",
        r"([A-Z])\s*$",
        r"([A-Z])\s*\.",
        r"([A-Z])\s*[^\w]",
    )
)
_WORD = re.compile(r"[A-Za-z0-9]+(?:'[a-z]+)?")
_ENTRIES = re.compile(r"[\s*_`(\[\-]*[A-I1-9]\s?[):.\]]")
"""The beginning of a list of labels, each with a mark behind it and its text."""
_ENTRY = re.compile(r"(?<![A-Za-z0-9])([A-I1-9])(?=\s?[):.\]])")
_ENTRY_LINE = re.compile(
    r"\s*(?:[-*\u2022]|\d{1,2}[.)](?=\s))?[\s*_`(\[$]*([A-I1-9])(?:[\s*_`)\]$.,;]*|[).:\]](?P<text>\s.*))"
)
"""A line that is an item of such a list."""
_GROUP = re.compile(r"(?<![A-Za-z0-9(,/])(?<![A-I][,.] )[A-I](?:, ?[A-I]){0,8},? (?:and|&) [A-I](?![A-Za-z0-9,)])")
"""Letters with an "and" in a sentence: ``A, B and C``."""
_CONNECTING = frozenset(
    ["and", "or", "also", "both", "only", "option", "options", "choice", "choices", "y", "e", "et", "und"]
)
_AGAINST = re.compile(r"(?i)\b(?:not|but|because|since|rather|instead|neither|nor|none)\b")
_BUT = re.compile(r"(?i)\bbut\b(?: rather)?")
_NEXT_SENTENCE = re.compile(r"[.;]\s+(?=[A-I1-9]\s+[a-z]|[A-Z][a-z])")
_REMARK = re.compile(r"\([^()]*[a-z]{2}[^()]*\)")
_BETWEEN = r"(?:[\s,;/&)\]}(\[\"']|and|or)"
_SMALL = re.compile(rf"[\s*_`([{{$\"']*[a-i](?:{_BETWEEN}+[a-i])+{_BETWEEN}*[.*_`$]*\Z")
"""Small letters that are labels, because nothing else is there."""
_RIGHT = re.compile(r"[)*\s]{1,4}are\s+(?:both\s+|all\s+)?(?:the\s+)?(?:correct|right|true)(?!\w)")
"""Behind letters with an "and"."""
_SHORT = 400
"""Letters of a line that are looked at."""
_BOX = "\\boxed{"


def mmlu_pro_letter(text: str) -> str | None:
    """The letter by MMLU-Pro's rule: the first ``answer is (X)``, else ``Answer: X``, else the last letter alone."""
    if said := _FIRST_SAID.search(text):
        return said[1]
    return _labelled(text) or _last(_ALONE, text)


def _labelled(text: str) -> str | None:
    """The last ``Answer: X`` that begins on the first line with any; the letter may stand on a later line."""
    found, end = None, len(text)
    for match in _LABELLED.finditer(text):
        if match.start() > end:
            break
        if found is None:
            line_end = text.find("\n", match.start())
            end = line_end if line_end >= 0 else end
        found = match[1]
    return found


def aa_letter(text: str) -> str | None:
    """The letter by Artificial Analysis' rule, as a capital."""
    letter = _last(_AA_LABELLED, text) or _last_boxed(text)
    for pattern in _AA_LATER:
        letter = letter or _last(pattern, text)
    return letter.upper() if letter else None


def index_letter(text: str, options: int, choices: Sequence[str] = ()) -> str | None:
    """The one letter that the response names, else by Artificial Analysis' rule.

    That rule takes the N of "the answer is not among the choices, but the closest is (B)", the V of ``10^-4 eV`` where
    the answer is ``**A. 10^-4 eV**``, and the R of an isomer behind ``Answer: $B$``.
    """
    named = named_option(text, options, choices)
    return named if named is not None and len(named) == 1 else aa_letter(text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = match[1]
    return found


def _last_boxed(text: str) -> str | None:
    """The last capital in the last box with one; a box ends at the first ``}``."""
    return next(reversed([capitals[-1] for capitals in _boxed_capitals(text) if capitals]), None)


def _boxed_capitals(text: str) -> Iterator[list[str]]:
    place = text.find(_BOX)
    while place >= 0 and (end := text.find("}", place)) >= 0:
        yield _CAPITAL.findall(text, place, end)
        place = text.find(_BOX, end)


def letters_named(text: str, labels: str = "ABCDEFGHI") -> str | None:
    """All labels behind the last ``Answer:``, in the last box, or behind the last ``answer is``, as ``AC``.

    They stand on the line of those words, or on the next ones. A response without such words may consist of labels, or
    name a single option.

    Args:
        text: the response.
        labels: of LogicVista's options; one of its questions has digits, so AND, OR and NONE are none.
    """
    text = plain_signs(text)
    for said, is_label, place in statements(text):
        if (listed := _listed_lines(text, place, labels, is_label)) or (listed := _listed(said, labels)):
            return listed
    for part in (text, text.strip().partition("\n")[0], text.rstrip().rpartition("\n")[2]):
        if len(part) <= _SHORT and (whole := _listed(part, labels, whole=True)) is not None:
            return whole
    groups = list(_GROUP.finditer(text))
    if right := [group for group in groups if _RIGHT.match(text, group.end())]:
        return _listed(right[-1][0], labels)
    letter = named_option(text, len(labels)) if labels[0] == "A" else None
    if letter is not None and len(letter) == 1 and letter in labels:
        return letter
    return only(listed for group in groups if (listed := _listed(group[0], labels)))


def _listed_lines(text: str, place: int, labels: str, with_texts: bool) -> str | None:
    """The labels that stand on lines of their own behind a place, at least two of them, or at the beginning of some."""
    if place < 0:
        return None
    found: list[str] = []
    for line in text[place : place + _SHORT].lstrip(" *_`:$\n").split("\n"):
        entry = _ENTRY_LINE.fullmatch(line)
        if entry is None or entry[1] not in labels or (entry["text"] and not with_texts):
            break
        found.append(entry[1])
    return "".join(sorted(found)) if len(set(found)) == len(found) > 1 else None


def _listed(said: str, labels: str, whole: bool = False) -> str | None:
    """The labels that a line lists: one behind the other, or each with a bracket or a point behind it."""
    said = _REMARK.sub(" ", without_text_commands(said[:_SHORT])).replace("as well as", "and")
    if (against := _AGAINST.search(said)) is not None:
        before, but = said[: against.start()], _BUT.search(said, against.end())
        if not _WORD.search(before) and but is None:
            return None
        said = before if but is None or _WORD.search(before) else said[but.end() :]
    if len(alone := said.strip(" \t\r*_`().:$\"'[]<>")) == 1 and alone.upper() in labels:
        return alone.upper()
    if _SMALL.match(said) is not None and labels[0] == "A":
        said = re.sub(r"\b[a-i]\b", lambda letter: letter[0].upper(), said)
    if whole and _NEXT_SENTENCE.search(said) is not None:
        return None
    if not (are_entries := _ENTRIES.match(said) is not None):
        said = _NEXT_SENTENCE.split(said)[0]
    found: list[str] = []
    for word in _WORD.finditer(said):
        is_pronoun = word[0] == "I" and re.match(r"\s+[a-z]", said[word.end() :])
        if set(word[0]) <= set(labels) and not is_pronoun:
            found.extend(word[0])
        elif word[0].lower() in _CONNECTING:
            continue
        elif whole:
            return None
        elif found:
            found = [one for one in _ENTRY.findall(said) if one in labels] if are_entries else found
            break
    return "".join(sorted(set(found))) or None


def grade_letters(response: str, gold: str) -> Verdict:
    """Compare the labels in a response with the right ones, all of which must be named and no other."""
    kinds = [labels for labels in ("ABCDEFGHI", "123456789") if gold and set(gold) <= set(labels)]
    if not kinds:
        return bad_item(f"the right letters {gold!r} are none")
    letters = letters_named(response, kinds[0])
    return without_answer("no letter is found") if letters is None else compared(letters == gold, letters, gold)


RULES: dict[str, Callable[[str, int, Sequence[str]], str | None]] = {
    "mmlu_pro": lambda text, options, choices: mmlu_pro_letter(text),
    "artificial_analysis": index_letter,
    "labelled": named_option,
}
"""By the name that an item gives."""


def grade_letter(response: str, gold: str, options: int, rule: str, choices: Sequence[str] = ()) -> Verdict:
    """Compare the letter in a response with the gold one.

    Args:
        response: the final response.
        gold: the right letter.
        options: how many the question has; letters beyond them are wrong.
        rule: one of :data:`RULES`.
        choices: the options' texts, where they are known.
    """
    letters = LETTERS[:options]
    if len(gold) != 1 or gold not in letters:
        return bad_item(f"the right letter {gold!r} is none of {options} options")
    letter = RULES[rule](response, options, choices)
    if letter is None:
        return without_answer("no letter is found")
    if len(letter) > 1:
        return without_answer(f"it names {' and '.join(letter)}")
    if letter not in letters:
        return compared(False, letter, f"one of the {options} options")
    return compared(letter == gold, letter, gold)
