"""Answers to the visual tasks."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_apriel.grading.verdict import Cause, Mark
from megatron_apriel.grading.visual_answers import grade_visual_answer


@pytest.mark.parametrize(
    ("response", "answer", "mark"),
    [
        ("C", "C", Mark.RIGHT),
        ("The right patch is C.", "C", Mark.RIGHT),
        ("(C)", "B", Mark.WRONG),
        ("A or C", "C", Mark.NONE),
        ("A or C? The answer is C.", "C", Mark.RIGHT),
        ("A or C? \\boxed{C}", "C", Mark.RIGHT),
        ("Cat", "C", Mark.NONE),
        ("c", "C", Mark.RIGHT),
        ("Answer: **c**", "C", Mark.RIGHT),
        ("The c is here.", "C", Mark.NONE),
        ("five", 5, Mark.RIGHT),
        ("There are five circles.", 5, Mark.RIGHT),
        ("One of five.", 5, Mark.NONE),
        ("That one is red, and so is this.", 1, Mark.NONE),
        ("one", 1, Mark.RIGHT),
        ("3 + 2 = 5", 5, Mark.RIGHT),
        ("5.0", 5, Mark.RIGHT),
        ("5.05", 5, Mark.NONE),
        ("1,234", 1234, Mark.RIGHT),
        ("The second row, third column", [2, 3], Mark.RIGHT),
        ("In the 2nd row and the 3rd column.", [2, 3], Mark.RIGHT),
        ("R2C3", [2, 3], Mark.RIGHT),
        ("The other row, third column", [2, 3], Mark.NONE),
        ("Yes", True, Mark.RIGHT),
        ("No, there is none. No.", False, Mark.RIGHT),
        ("yes and no", True, Mark.NONE),
        ("Nothing", False, Mark.NONE),
        ("6", 6, Mark.RIGHT),
        ("There are 6 shapes.", 6, Mark.RIGHT),
        ("There are 7 shapes.", 6, Mark.WRONG),
        ("2 + 4, so the answer is 6", 6, Mark.RIGHT),
        ("Answer: 6 (3 red and 3 blue)", 6, Mark.RIGHT),
        ("Answer: 6 or 7", 6, Mark.NONE),
        ("Answer: 1.5", 1, Mark.NONE),
        ("Answer: yes. There is no other.", True, Mark.RIGHT),
        ("The answer is C: not A", "C", Mark.RIGHT),
        ("1.5", 1, Mark.NONE),
        ("1" * 5000, 1, Mark.NONE),
        ("Row 4, column 3", [4, 3], Mark.RIGHT),
        ("in row 4 and column 3.", [4, 3], Mark.RIGHT),
        ("row 3, column 4", [4, 3], Mark.WRONG),
        ("**Row 4**, **Column 3**", [4, 3], Mark.RIGHT),
        ("row=4, col=3", [4, 3], Mark.RIGHT),
        ("column 3, row 4", [4, 3], Mark.RIGHT),
        ("row 4, column 3, or row 3, column 4", [4, 3], Mark.NONE),
        ("4, 3", [4, 3], Mark.NONE),
        ("3 1 2", [3, 1, 2], Mark.RIGHT),
        ("The order is:\n3, 1, 2", [3, 1, 2], Mark.RIGHT),
        ("3 1", [3, 1, 2], Mark.WRONG),
        ("The 3 pieces: 3 1 2", [3, 1, 2], Mark.RIGHT),
        ("It is at row 4, in column 3.", [4, 3], Mark.RIGHT),
        ("Answer: 3 1 2\n(3 pieces)", [3, 1, 2], Mark.RIGHT),
        ("1 2 3? No:\n3 1 2", [3, 1, 2], Mark.RIGHT),
        ("", [3, 1, 2], Mark.NONE),
    ],
)
def test_answers(response: str, answer: Any, mark: Mark) -> None:
    assert grade_visual_answer(response, answer).mark is mark


@pytest.mark.parametrize("answer", [None, "CD", [1], 1.5, {"a": 1}])
def test_what_is_no_answer_is_an_error_of_the_data(answer: Any) -> None:
    assert grade_visual_answer("C", answer).cause is Cause.DATA
