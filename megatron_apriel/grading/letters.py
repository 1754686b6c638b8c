"""The letter that answers a multiple-choice question, by the rules of two benchmarks, in linear time.

MMLU-Pro's official script looks for an answer in three steps and draws a letter where it finds none; here that is no
answer. Its patterns ``.*[aA]nswer:`` and ``(?!.*...)`` take quadratic time; the steps below find the same letters in
one pass each (TIGER-AI-Lab/MMLU-Pro, ``compute_accuracy.py``).

Artificial Analysis goes through nine patterns in order and takes the last match of the first that matches. The later
ones match nearly anything: any capital before a mark. The patterns are those of ``mmlu_pro_aa_v3`` and
``gpqa_diamond_aa_v3`` in nvidia-simple-evals 26.3; two are written out as code, because they take quadratic time.

evalscope's prompts ask for a last line ``ANSWER: X``. Where the letter stands there in bold, brackets or LaTeX, the
nine patterns look past it at any capital behind; so for these prompts that line comes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from megatron_apriel.grading.boxed import last_boxed
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

MMLU_PRO_LETTERS = "ABCDEFGHIJ"

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
_LABELS = (re.compile(r"(?i)answers?[*_`]*\s*[:\uff1a]"), re.compile(r"(?i)answers?\s+(?:is|are)(?![a-z])"))
_JOINED = re.compile(r"(?<![A-Za-z])(?!I\s+[a-z])[A-I]+(?![A-Za-z'])")
"""Labels of options, one behind the other; not the word I. LogicVista's go to I, so AND, OR and NONE are none."""
_MARKED = re.compile(
    r"(?i:answer)[*_`]*\s*[:\uff1a]\s*[*_`$(\[{\\]*(?:(?i:boxed|text|textbf|mathrm|mathbf)\{[*_($\\]*)*"
    r"(?:([A-Z])(?![A-Za-z0-9'])|([a-z])[*_`$)\]}\\.]*[ \t]*$)",
    re.MULTILINE,
)
"""``Answer: X`` with marks of Markdown or LaTeX around it; a small letter only where the line ends behind it."""
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


def labelled_letter(text: str) -> str | None:
    """The letter behind the last ``Answer:``, marks around it allowed; without any by Artificial Analysis' rule."""
    return marked_letter(text) or aa_letter(text)


def marked_letter(text: str) -> str | None:
    """The letter behind the last ``Answer:`` that has one, marks around it allowed, as a capital."""
    found = None
    for match in _MARKED.finditer(text):
        found = match
    return (found[1] or found[2]).upper() if found is not None else None


def letters_named(text: str) -> str | None:
    """All letters behind the last ``Answer:``, in the last box, or behind the last ``answer is``, as ``AC``.

    They stand on the line of those words, or on the next one with a word.
    """
    for said in (_behind_last(_LABELS[0], text), last_boxed(text), _behind_last(_LABELS[1], text)):
        if said is not None:
            return "".join(sorted({letter for word in _JOINED.findall(said) for letter in word})) or None
    return None


def _behind_last(label: re.Pattern[str], text: str) -> str | None:
    ends = [match.end() for match in label.finditer(text)]
    if not ends:
        return None
    said, _, behind = text[ends[-1] :].partition("\n")
    return said if said.strip(" \t\r*_`") else behind.lstrip().partition("\n")[0]


def grade_letters(response: str, gold: str) -> Verdict:
    """Compare the letters in a response with the right ones, all of which must be named and no other."""
    if not gold or not all("A" <= letter <= "I" for letter in gold):
        return bad_item(f"the right letters {gold!r} are none")
    letters = letters_named(response)
    return without_answer("no letter is found") if letters is None else compared(letters == gold, letters, gold)


RULES: dict[str, Callable[[str], str | None]] = {
    "mmlu_pro": mmlu_pro_letter, "artificial_analysis": aa_letter, "labelled": labelled_letter,
}  # fmt: skip
"""By the name that an item gives."""


def grade_letter(response: str, gold: str, options: int, rule: str) -> Verdict:
    """Compare the letter in a response with the gold one.

    Args:
        response: the final response.
        gold: the right letter.
        options: how many the question has; letters beyond them are wrong.
        rule: one of :data:`RULES`.
    """
    if len(gold) != 1 or not "A" <= gold <= "Z" or ord(gold) - ord("A") >= options:
        return bad_item(f"the right letter {gold!r} is none of {options} options")
    letter = RULES[rule](response)
    if letter is None:
        return without_answer("no letter is found")
    if ord(letter) - ord("A") >= options:
        return compared(False, letter, f"one of the {options} options")
    return compared(letter == gold, letter, gold)
