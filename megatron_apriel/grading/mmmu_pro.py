"""MMMU-Pro's official rule for multiple choice, without the letter that it draws where it finds none.

The rule of ``mmmu-pro/evaluate.py`` (MMMU-Benchmark/MMMU at bb0b95a9):

1. Behind the last ``Answer:``, if exactly one of the letters occurs there, anywhere and also in a word: that letter.
2. Else the letters that occur as ``(X)``; if none, as ``X`` and a blank; if none, as ``X.``, in the response without
   the marks around it and with a blank on each side.
3. If none, and the response has more than five words: the options whose text occurs, in capitals or not.
4. Of several, the one whose last place is furthest right; one that is looked up in vain is left of all, and the first
   of equals counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.grading.verdict import Verdict, bad_item, compared, without_answer

_LABEL = "Answer:"
_MARKS = ",.!?;:'"
_WORDS = 5


def mmmu_pro_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response names."""
    letters = LETTERS[: len(options)]
    if (place := text.rfind(_LABEL)) >= 0:
        behind = text[place + len(_LABEL) :].strip()
        if len(named := [letter for letter in letters if letter in behind]) == 1:
            return named[0]
    for mark in _MARKS:
        text = text.strip(mark)
    text = f" {text} "
    for before, after, place_before, place_after in (("(", ")", "(", ")"), ("", " ", " ", " "), ("", ".", " ", " ")):
        if found := [letter for letter in letters if f"{before}{letter}{after}" in text]:
            return max(found, key=lambda letter: text.rfind(f"{place_before}{letter}{place_after}"))
    if len(text.split(None, _WORDS)) <= _WORDS:
        return None
    text, texts = text.lower(), {letter: option.lower() for letter, option in zip(letters, options, strict=True)}
    by_text = [letter for letter in letters if texts[letter] in text]
    return max(by_text, key=lambda letter: text.rfind(texts[letter]), default=None)


def grade_mmmu_pro(response: str, gold: str, options: Sequence[str]) -> Verdict:
    """Compare the option that a response names with the right letter."""
    if len(gold) != 1 or gold not in LETTERS[: len(options)]:
        return bad_item(f"the right letter {gold!r} is none of {len(options)} options")
    letter = mmmu_pro_letter(response, options)
    return without_answer("it names no option") if letter is None else compared(letter == gold, letter, gold)
