"""MMMU's open questions by the official rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from megatron_apriel.grading.letters import grade_letters, letters_named
from megatron_apriel.grading.mmmu_open import grade_mmmu_open
from megatron_apriel.grading.verdict import Cause


@pytest.mark.parametrize(
    ("response", "gold", "is_right"),
    [
        ("The answer is 24.32.", "24.32", True),
        ("So x = 24.324 kg", "24.32", True),
        ("It is 1,234 altogether", "1234", True),
        ("It is 1.2e3", "1200", True),
        ("The result must be called Mitosis", "mitosis", True),
        ("Mitosis", "mitosis", True),
        ("It is meiosis", "mitosis", False),
        ("Mitosis came first.\nThe answer is meiosis", "mitosis", False),
        ("24 is 7", "24", False),
        ("the answer is category", "a", False),  # a single letter is not found in words
        ("the answer is a cat", "a", True),
        ("so 0.125", "['1/8', '0.125']", True),
        ("so 1/8", "['1/8', '0.125']", True),
        ("so 1/9", "['1/8', '0.125']", False),
    ],
)
def test_open_questions(response: str, gold: str, is_right: bool) -> None:
    assert grade_mmmu_open(response, gold).is_right is is_right


def test_gold_that_is_none() -> None:
    for gold in ("", "[", "[]", "['a'", "[1"):
        assert grade_mmmu_open("1", gold).cause is Cause.DATA


@pytest.mark.parametrize("piece", ["1", "1,234", "is ", "1.5,", ".5", "e5", "=\n", "so a "])
def test_time_is_linear(piece: str, times_of: Callable[..., Sequence[float]]) -> None:
    short, long = times_of(lambda text: grade_mmmu_open(text, "24.32"), piece)
    assert long <= 15 * short


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A is out.\nANSWER: C, A", "AC"),
        ("**Answer:** CA", "AC"),
        ("Answer: B.\nAnswer: A and D", "AD"),
        ("so \\boxed{B, C}", "BC"),
        ("A and C", None),
        ("Answer: none", None),
    ],
)
def test_several_letters(text: str, letters: str | None) -> None:
    assert letters_named(text) == letters


def test_several_letters_must_all_be_right() -> None:
    assert grade_letters("Answer: C, A", "AC").is_right
    assert not grade_letters("Answer: A", "AC").is_right and not grade_letters("Answer: A, B, C", "AC").is_right
    assert grade_letters("nothing", "AC").cause is Cause.NO_ANSWER
    assert grade_letters("Answer: A", "").cause is Cause.DATA
