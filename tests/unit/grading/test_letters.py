"""Letters: the steps in one pass find what the official patterns find, which take quadratic time."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from megatron_apriel.grading.letters import (
    aa_letter,
    grade_letter,
    grade_letters,
    index_letter,
    letters_named,
    mmlu_pro_letter,
)
from megatron_apriel.grading.mmmu_pro import grade_mmmu_pro, mmmu_pro_letter
from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.verdict import Cause, Mark
from tests.unit.grading.conftest import CheckLinear

PIECES = (
    "answer is ", "Answer:", "answer:", " ", "\n", "A", "B", "(C)", "D)", "\\boxed{", "}", "x", "*", "__", ".",
    "is the correct answer", "answer is (d)", "I", "Z", "é", "  ", "answer", ":", "Because",
)  # fmt: skip
AA = (
    r"(?i)[\*\_]{0,2}Answer[\*\_]{0,2}\s*:[\s\*\_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])",
    r"\\boxed\{[^}]*([A-Z])[^}]*\}",
    r"answer is ([a-zA-Z])",
    r"answer is \(([a-zA-Z])\)",
    r"([A-Z])\)\s*[^A-Z]*",
    r"([A-Z])\s+is\s+the\s+correct\s+answer",
    r"([A-Z])\s*$",
    r"([A-Z])\s*\.",
    r"([A-Z])\s*[^\w]",
)


def official_mmlu_pro(text: str) -> str | None:
    for pattern, flags in (
        (r"answer is \(?([A-J])\)?", 0),
        (r".*[aA]nswer:\s*([A-J])", 0),
        (r"\b([A-J])\b(?!.*\b[A-J]\b)", re.DOTALL),
    ):
        if match := re.search(pattern, text, flags):
            return match[1]
    return None


def official_aa(text: str) -> str | None:
    for pattern in AA:
        if matches := list(re.finditer(pattern, text, re.MULTILINE | re.DOTALL)):
            return matches[-1][1].upper()
    return None


@pytest.mark.parametrize(("ours", "official"), [(mmlu_pro_letter, official_mmlu_pro), (aa_letter, official_aa)])
def test_the_official_patterns_find_the_same(
    ours: Callable[[str], str | None], official: Callable[[str], str | None]
) -> None:
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        assert ours(text) == official(text), text


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C). No, the answer is (D).", "C"),
        ("Answer: B\nanswer: C", "B"),
        ("Because of that,\nAnswer: Because", "B"),
        ("Neither A nor D", "D"),
        ("nothing", None),
    ],
)
def test_mmlu_pro(text: str, letter: str | None) -> None:
    assert mmlu_pro_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("**Answer: B**", "B"),
        ("Answer: Because it is so.\nAnswer: c", "C"),
        ("answer: A, or rather \\boxed{\\text{B}}", "A"),
        ("So \\boxed{A} or \\boxed{\\text{(D)}}", "D"),
        ("nothing at all", None),
    ],
)
def test_artificial_analysis(text: str, letter: str | None) -> None:
    assert aa_letter(text) == index_letter(text, 4) == letter


@pytest.mark.parametrize(
    ("text", "letter", "guessed"),
    [
        ("It is the (R) form.\n\nAnswer: $B$", "B", "R"), ("Of (E) and (Z), E.\nAnswer: \\( \\text{B} \\)", "B", "Z"),
        ("It is 3 V.\n\nFinal answer: **Option B**", "B", "V"), ("So the answer is:\n\nB. 10 eV", "B", "V"),
        ("The NMR shows (H) and (D).\n\n\u041e\u0442\u0432\u0435\u0442: B", "B", "D"),
        ("Perhaps A) or D), I cannot say", "D", "D"),
    ],
)  # fmt: skip
def test_what_a_response_names_comes_before_any_capital(text: str, letter: str, guessed: str) -> None:
    assert (index_letter(text, 4), aa_letter(text)) == (letter, guessed)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("ANSWER: A, C", "AC"), ("ANSWER: C and A", "AC"), ("ANSWER: A AND C", "AC"), ("ANSWER: AC.", "AC"),
        ("**ANSWER:** (A), (C)", "AC"), ("ANSWER:\nA/C", "AC"), ("\\boxed{A, C}", "AC"), ("The answers are A, C", "AC"),
        ("ANSWER: B.\nThis answer is right.", "B"), ("ANSWER: I think A", "A"), ("ANSWER: I", "I"),
        ("ANSWER: A, C (not B)", "AC"), ("ANSWER: A because C is wrong", "A"), ("ANSWER: Options A and D", "AD"),
        ("ANSWER: (A) triangle, (C) square", "AC"), ("ANSWER: A: one, C: two", "AC"), ("B, D", "BD"), ("C", "C"),
        ("ANSWER: the letters A and C", "AC"), ("**A, C**", "AC"), ("The answer is (B).", "B"), ("(D) a circle", "D"),
        ("I'm sorry, I can't see it.", None), ("ANSWER: neither A nor B", None), ("\\boxed{\\text{A, C}}", "AC"),
        ("ANSWER: A, C.\nBecause B and D have no X.", "AC"), ("ANSWER: [A, C]", "AC"), ('ANSWER: ["A", "C"]', "AC"),
        ("ANSWER: NONE", None), ("ANSWER: none of these", None), ("Maybe A", "A"), ("A and C", "AC"),
        ("ANSWER: a bad cage", None),
        ("The correct options are A and C", "AC"), ("Correct options: A, C", "AC"), ("### Final Answer\nA and C", "AC"),
        ("<answer>A, C</answer>", "AC"), ("\u7b54\u6848\uff1aAC", "AC"), ("\\boxed{A \\text{ and } C}", "AC"),
        ("\\boxed{A}, \\boxed{C}", "AC"), ("First \\boxed{A}, but then \\boxed{C}", "C"), ("ANSWER:\n- A\n- C", "AC"),
        ("ANSWER:\nA. one\nC. two", "AC"), ("ANSWER: A as well as C", "AC"), ("ANSWER: A (one) and C (two)", "AC"),
        ("ANSWER: a, c", "AC"), ("ANSWER: ['A', 'C']", "AC"), ("ANSWER: A, C. B is wrong.", "AC"),
        ("A and C only", "AC"),
        ("ANSWER: not A but B", "B"), ("ANSWER: B. A and C are wrong", "B"), ("A, C\n\nB is wrong.", "AC"),
        ("Options:\nA. one\nB. two", None), ("A, C<|im_end|>", "AC"),
        ("So the answer is (A).\n\nThe other choices are:\n* (B) two", "A"), ("A, C</s>", "AC"),
        ("answer : d", "D"), ("ANSWER: A\nANSWER: C", "C"),
        ("The diagrams A and B belong to it, C does not.", "AB"), ("Which of A, B, and C?\nA and C. Or B and C.", None),
    ],
)  # fmt: skip
def test_several_letters(text: str, letters: str | None) -> None:
    assert letters_named(text) == letters


def test_all_letters_and_no_other_are_right() -> None:
    assert grade_letters("ANSWER: C, A", "AC").mark is Mark.RIGHT
    assert grade_letters("ANSWER: A", "AC").mark is grade_letters("ANSWER: A, B, C", "AC").mark is Mark.WRONG
    assert grade_letters("ANSWER: 3", "3").is_right and not grade_letters("ANSWER: 4", "3").is_right
    assert grade_letters("3", "3").is_right and not grade_letters("ANSWER: C", "3").is_right
    assert grade_letters("No.", "AC").cause is Cause.NO_ANSWER
    assert grade_letters("ANSWER: A", "Z").cause is grade_letters("ANSWER: A", "").cause is Cause.DATA


def test_verdicts_on_letters() -> None:
    assert grade_letter("The answer is (B).", "B", 4, "mmlu_pro").mark is Mark.RIGHT
    assert grade_letter("The answer is (B).", "A", 4, "mmlu_pro").mark is Mark.WRONG
    beyond = grade_letter("The answer is (J).", "A", 4, "mmlu_pro")
    assert (beyond.mark, beyond.found) == (Mark.WRONG, "J")
    assert grade_letter("nothing", "A", 4, "mmlu_pro").cause is Cause.NO_ANSWER
    assert grade_letter("The answer is (J).", "J", 4, "mmlu_pro").cause is Cause.DATA


OPTIONS = ("red cars", "two red cars", "Blue", "none of them")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is so.\nAnswer: C", "C"),
        ("Answer: A. Answer: D", "D"),
        ("Answer: Because", "B"),  # letters in words count behind the label
        ("Answer: A or B", "B"),  # two letters there: the one furthest right of those before a blank
        ("(A) is wrong, (D) is right, and not (A)", "A"),
        ("I would choose B", "B"),
        ("It must be C.", "C"),
        ("so it is TWO red cars here, I say", "A"),  # `red cars` begins further right
        ("blue it is then for all of us", "C"),
        ("two red cars", None),  # too few words for the options' texts
        ("no letter here that is any of those", None),
        ("", None),
    ],
)
def test_mmmu_pro(text: str, letter: str | None) -> None:
    assert mmmu_pro_letter(text, OPTIONS) == letter


def test_verdicts_on_mmmu_pro() -> None:
    assert grade_mmmu_pro("Answer: C", "C", OPTIONS).is_right
    assert grade_mmmu_pro("no", "C", OPTIONS).cause is Cause.NO_ANSWER
    assert grade_mmmu_pro("Answer: C", "E", OPTIONS).cause is Cause.DATA


LONG = ("A ", "{", "\\boxed{", "answer: ", "answer is (", "answer:" + " " * 50, "(A) ", "Answer", "B" * 20, "\n", "*_",
        "answer:\\", "answer: \\boxed{", "answer: \\text{\\text{", "answers are ", "\\boxed{A},", "A and ",
        "so ")  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize(
    "find",
    [mmlu_pro_letter, aa_letter, named_option, letters_named, lambda text: mmmu_pro_letter(text, OPTIONS)],
)
def test_time_is_linear(find: Callable[[str], object], piece: str, check_linear: CheckLinear) -> None:
    check_linear(find, piece)
