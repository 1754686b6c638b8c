"""MMMU's open questions by the official rule."""

from __future__ import annotations

import pytest

from megatron_apriel.grading.mmmu_open import grade_mmmu_open
from megatron_apriel.grading.verdict import Cause
from tests.unit.grading.conftest import CheckLinear


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


@pytest.mark.parametrize(
    ("response", "gold", "is_right"),
    [
        ("The sum is 5 and so is 7.\nANSWER: 42", "42", True), ("The sum is 42.\nANSWER: 5", "42", False),
        ("It is found from the figure.\n**ANSWER: 24.32**", "24.32", True), ("ANSWER: $24.32$", "24.32", True),
        ("ANSWER: \\boxed{1/64}", "1/64", True), ("So.\nANSWER: $\\frac{1}{64}$", "1/64", True),
        ("So it is.\n\\boxed{8{,}200}", "8200", True), ("ANSWER: $8,200$ dollars", "8200", True),
        ("ANSWER: 2.83 \\text{ V}", "2.83", True), ("ANSWER: 60%", "60", True), ("ANSWER: -120", "-120", True),
        ("ANSWER: \u2212120", "-120", True), ("ANSWER: 120", "-120", False), ("ANSWER: 0.963", "0.963", True),
        ("ANSWER: C", "C", True), ("ANSWER: B", "C", False), ("ANSWER: **C**", "C", True), ("ANSWER: (C)", "C", True),
        ("ANSWER: \\text{Tampa}", "['Tampa', 'Florida']", True), ("ANSWER: the city of Tampa", "['Tampa']", True),
        ("ANSWER: MgS", "['$MgS$', 'MgS']", True), ("ANSWER: $\\mathrm{MgS}$", "['$MgS$', 'MgS']", True),
        ("ANSWER:\n42", "42", True), ("ANSWER: 24/7", "['24/7', '3.429']", True), ("Final answer: 7", "7", True),
        ("### Final Answer\n42", "42", True), ("<answer>42</answer>", "42", True), ('{"answer": "42"}', "42", True),
        ("\u7b54\u6848\uff1a42", "42", True), ("\\boxed{6.00}", "$6.00", True), ("ANSWER: $6.00", "$6.00", True),
        ("ANSWER: 7", "$6.00", False), ("ANSWER: apoptosis (of a cell)", "apoptosis", True),
        ("ANSWER: .75", "0.75", True), ("ANSWER: 5", "$", False),
        ("The answer is $\\frac{24}{7}$.", "24/7", True), ("ANSWER: 42<|im_end|>", "42", True),
        ("ANSWER: 24 is 7", "24", False), ('ANSWER: "C"', "C", True), ("$-3$", "-3", True),
        ("ANSWER: 4\nWait, no.\nANSWER: 5", "5", True), ("ANSWER: 4\nWait, no.\nANSWER: 5", "4", False),
    ],
)  # fmt: skip
def test_the_line_that_the_prompt_asks_for(response: str, gold: str, is_right: bool) -> None:
    assert grade_mmmu_open(response, gold).is_right is is_right


def test_gold_that_is_none() -> None:
    for gold in ("", "[", "[]", "['a'", "[1"):
        assert grade_mmmu_open("1", gold).cause is Cause.DATA


@pytest.mark.parametrize("piece", ["1", "1,234", "is ", "1.5,", ".5", "e5", "=\n", "so a "])
def test_time_is_linear(piece: str, check_linear: CheckLinear) -> None:
    check_linear(lambda text: grade_mmmu_open(text, "24.32"), piece)
