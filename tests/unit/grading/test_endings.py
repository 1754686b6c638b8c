"""Ends of responses as models write them, which an earlier rule or another one read otherwise than a person does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.letters import index_letter, letters_named
from megatron_apriel.grading.math_answers import MathGrader
from megatron_apriel.grading.mathvista import AnswerType, grade_mathvista, taken_answer
from megatron_apriel.grading.mmmu_open import grade_mmmu_open
from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.verdict import Mark

ANIMALS = ("a dog", "a cat", "two cats", "None of the above")
LENGTHS = ("5 cm", "10 cm", "1,200 cm", "0.5 cm")
VALUES = ("$\\frac{1}{2}$", "$(0, 1]$", "$-\\frac{1}{3}$", "$2\\sqrt{2}$")
STATEMENTS = ("I only", "II only", "I and II only", "I, II and III")
DEPTHS = ("A is closer", "B is closer")


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A: B", "B"), ("Q: Which is it?\nA: B", "B"), ("B describes the image best.", "B"),
        ("A describes the image best.", "A"), ("Looking at the image, B matches the pattern.", "B"),
        ("Thus, among the choices, **B** is the only one that fits.", "B"), ("So, B it is.", "B"), ("I'd say B", "B"),
        ("Let's go with B.", "B"), ("Best guess: B", "B"), ("Answer: definitely B", "B"),
        ("Answer: 42 \u2192 B", "B"), ("Answer: I think it's B.", "B"), ("ANSWER:\n1. B", "B"),
        ("This corresponds to **B**.", "B"), ("After evaluating, B appears to be the most accurate answer.", "B"),
        ("A shows 3 dots. C shows 4 dots. So it must be B.", "B"),
        ("So the answer isn't A, it's B.", "B"), ("The answer is not (A). It is (B).", "B"),
        ("ANSWER: A\n\nOn reflection, \\boxed{B}", "B"), ("\\boxed{A} is wrong.\n\nANSWER: B", "B"),
        ("ANSWER: B<|endoftext|>Human: Which of C and D?", "B"), ("<final_answer>B</final_answer>", "B"), ("<B>", "B"),
        ("\u3010\u7b54\u6848\u3011B", "B"), ("Die Antwort lautet B.", "B"),
        ("\u0110\xe1p \xe1n \u0111\xfang l\xe0 B.", "B"),
        ("By these means: C is out.\n\nSo the answer is B.", "B"),
        ("The answer seems to be D, but in fact it is B.", "B"),
        ("1. The next box in the sequence would be B.", "B"), ("1. B", "B"),
        ("**Correct answer:** B\n**Incorrect answer:** A", "B"),
        ("It is either A or B. Since the angle is acute, it is B.", "B"),
    ],
)  # fmt: skip
def test_one_letter(text: str, letter: str) -> None:
    assert named_option(text, 4) == index_letter(text, 4) == letter


@pytest.mark.parametrize(
    "text",
    [
        "The vector from A to B", "Since A \u2282 B, we have A \u2229 B = A.", "So B, C and D.",
        "It is impossible to say which of the options A, B, C, D is correct.", "I cannot say whether it is B.",
        "Answer: Not listed", "1. A\n\n2. B\n3. C\n4. D", "The pressure is 3 Pa, so the temperature is 7\xb0C",
        "The work is equal to $2 \\mathrm{~C}$. We want to find the",
    ],
)  # fmt: skip
def test_no_letter(text: str) -> None:
    assert len(named_option(text, 4) or "AB") != 1


def test_what_a_response_names_comes_before_the_patterns_of_the_index() -> None:
    assert index_letter("The answer is not among the choices, but the closest is (C).", 4) == "C"
    assert index_letter("The answer is likely B.", 4) == "B"
    assert index_letter("Perhaps A) or D), I cannot say", 4) == "D"


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("ANSWER: dog", ANIMALS, "A"), ("ANSWER: The dog", ANIMALS, "A"), ("A cat.", ANIMALS, "B"),
        ("ANSWER: None of the above", ANIMALS, "D"), ("ANSWER: none of these", ANIMALS, None),
        ("It isn't a cat.", ANIMALS, None), ("ANSWER: 1{,}200 cm", LENGTHS, "C"), ("ANSWER: .5 cm", LENGTHS, "D"),
        ("ANSWER: .5", ("5", "0.5"), "B"), ("ANSWER: about 10", LENGTHS, "B"), ("ANSWER: $x = 10$", LENGTHS, "B"),
        ("AB = 5 cm and BC = 5 cm, so AC = 10 cm.", LENGTHS, "B"), ("\\boxed{0.5}", VALUES, "A"),
        ("The interval is $(0,1]$.", VALUES, "B"), ("\\boxed{\\dfrac{-1}{3}}", VALUES, "C"),
        ("ANSWER: $2\\sqrt2$", VALUES, "D"), ("\\boxed{50\\%}", ("25%", "50%"), "B"),
        ("ANSWER: I, II, and III", STATEMENTS, "D"), ("ANSWER: II only", STATEMENTS, "B"),
        ("Point B is closer to the camera.", DEPTHS, "B"), ("A is closer than B.", DEPTHS, "A"),
        ("ANSWER: cannot be determined", ("Yes", "It cannot be determined"), "B"),
        ("ANSWER: CO\u2082", ("$O_2$", "$CO_2$"), "B"), ("ANSWER: $x \\geq 3$", ("x > 3", "x \u2265 3"), "B"),
        ("ANSWER: Respiration", ("Transpiration", "Cell respiration"), "B"),
        ("A dog needs light.\n\nIt is a cat.\n\nI hope this helps!", ANIMALS, "B"),
    ],
)  # fmt: skip
def test_texts_of_options(text: str, choices: Sequence[str], letter: str | None) -> None:
    assert named_option(text, len(choices), choices) == letter


BEFORE = (
    "", "A is too small. C is too big.\n\n", "- A: 5 cm\n- B: 10 cm\n- C: 15 cm\n\n", "In triangle ABC, AB = 5.\n\n",
    "First I thought the answer is A. But that is wrong.\n\n", "The question is which of A, B, C, D is right.\n\n",
    "The answer should be a number.\n\n", "To answer: look closely.\n\n", "We compute \\boxed{5} on the way.\n\n",
)  # fmt: skip
BEHIND = (
    "", "\n\nI hope this helps!", "\n\nExplanation: A is too small, and C and D are too big.", "\n\n---",
    "\n\nLet me know if you'd like me to explain why A, C, and D are wrong.", "\n\nConfidence: 90%",
    "\n\n(A) is wrong because it is too small. (C) is too big.", "\n\n- A: too small\n- C: too big\n- D: unrelated",
    "\n\nNote that option A would be correct if the scale were different.", "<|im_end|>",
    "\n\nThe answer makes sense, because A is smaller.",
)  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        "ANSWER: B", "**Answer:** B", "Answer: 10 cm (B)", "$$\\boxed{B}$$", "\\[\n\\boxed{\\text{B. 10 cm}}\n\\]",
        "The answer is **B**.", "The correct answer is:\n\n**B. 10 cm**", "### Final Answer\n\nB", "I choose B.",
        "So it must be B.", "Therefore, B.", "**Correct option: B**", "<answer>B</answer>", "\u7b54\u6848\uff1aB",
    ],
)  # fmt: skip
def test_what_stands_around_an_answer_does_not_change_it(said: str) -> None:
    texts = [f"{before}{said}{behind}" for before in BEFORE for behind in BEHIND]
    assert [
        text for text in texts if {named_option(text, 4), index_letter(text, 4), letters_named(text)} != {"B"}
    ] == []


@pytest.mark.parametrize("said", ["Option B is correct.", "**B** is correct.", "B is the correct answer."])
def test_the_last_option_that_is_said_to_be_right(said: str) -> None:
    assert {named_option(f"{before}{said}{behind}", 4) for before in BEFORE for behind in BEHIND} == {"B"}


@pytest.mark.parametrize(
    "said",
    [
        "ANSWER: B, D", "**Answer:** **B** and **D**", "\\boxed{B}, \\boxed{D}", "\\boxed{\\text{B and D}}",
        "The correct answers are (B) and (D).", "Therefore, B and D are correct.", "Answer:\n- B\n- D",
    ],
)  # fmt: skip
def test_what_stands_around_several_letters_does_not_change_them(said: str) -> None:
    assert {letters_named(f"{before}{said}{behind}") for before in BEFORE for behind in BEHIND} == {"BD"}


@pytest.mark.parametrize(
    "said",
    [
        "Answer: 42", "**Answer:** $42$", "\\boxed{42}", "The answer is **42** cm.", "Thus, the area is 42 cm\xb2.",
        "So x = 42.", "Therefore, the total number of squares is **42**.", "### Final Answer\n\n42", "$$\nx = 42\n$$",
        "So there are 42 squares.", "Answer: The sum of 7 and 35 is 42.", "#### 42",
    ],
)  # fmt: skip
def test_what_stands_around_a_number_does_not_change_it(grader: MathGrader, said: str) -> None:
    before = ("", "We have x = 7.\n\n", "First I thought the answer is 7.\n\n", "The answer is not 7.\n\n",
              "An answer of 7 is too small.\n\n", "If x were 7, the answer would be 9.\n\n")  # fmt: skip
    behind = ("", "\n\nI hope this helps!", "\n\nAn answer of 7 is too small.", "\n\n---", "<|im_end|>")
    texts = [f"{one}{said}{other}" for one in before for other in behind]
    assert [text for text in texts if not grader.grade(text, "42").is_right] == []
    assert [text for text in texts if taken_answer(text, "integer", ()) != "42"] == []
    assert [text for text in texts if not grade_mmmu_open(text, "42").is_right] == []


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("\\boxed{B}\\text{ and }\\boxed{D}", "BD"), ("Therefore, B and D are correct.", "BD"),
        ("So B, C and D.", "BCD"),
        ("The answer is D, as A, B, and C are identical.", "D"), ("ANSWER: B as well as D", "BD"),
        ("B completes the pattern.", "B"), ("The pattern is completed by B.", "B"),
    ],
)  # fmt: skip
def test_several_letters(text: str, letters: str) -> None:
    assert letters_named(text) == letters


@pytest.mark.parametrize(
    "said",
    [
        "The answer is 204. An answer of 7 is too small.", "The answer is 204.\n\nAn answer of 7 is too small.",
        "Answer: 204\n\nAn answer of 7 is too small.", "Answer: 204\n\nThe answer is even, as it must be.",
        "The answer is 204.\n\nNote: if the radius were 7, the answer would be 7.",
        "The answer is not 7 but 204.", "The answer isn't 7. It's 204.", "The answer is 204.\n\nThe answer is not 7.",
        "Answer: **204** degrees", "Answer: about 204", "The sum is 200 + 4 = 204.\n\n#### 204", "> **204**",
        "The total is 204.", "The perimeter of the square is **204 cm**.", "Hence,\n\\[\nx = 204\n\\]", "Total: 204",
        "So\n$$\nx = 204.\n$$", "\\begin{align*}\nx &= 408/2\\\\\n&= 204\n\\end{align*}",
        "We get x = 204 or x = -7. Since x > 0, x = 204.", "Thus, the length is \\( 204 \\) cm.",
        "There are 204 squares in total.\n\nI hope this helps!", "So Kim needs **204** more apples.",
        "So it's 204 percent.",
        "The length is \\(204\\), or about 7 inches.", "With 7 of them, so the sum is 204.",
    ],
)  # fmt: skip
def test_numbers(grader: MathGrader, said: str) -> None:
    assert grader.grade(said, "204").is_right
    assert not grader.grade(said, "7").is_right


@pytest.mark.parametrize(
    "said",
    [
        "I cannot see the 204 squares.", "Of these 204 are red and 7 blue.", "Thus x = 204 and y = 7.", "So 204 or 7.",
        "\\boxed{204", "The answer is", "It is \\frac{204}{7", "The root is \\sqrt{204} of it",
    ],
)  # fmt: skip
def test_no_number(grader: MathGrader, said: str) -> None:
    assert not grader.grade(said, "204").is_right


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("\\boxed{\\log_{2} 3}", "\\log_2 3"), ("The area is $12\\pi$ cm$^2$.", "12\\pi"),
        ("Thus, the length is 5\u221a2 cm.", "5\\sqrt{2}"), ("So P = 5/12 \u2248 0.4167.", "\\frac{5}{12}"),
        ("The probability is \\(\\frac{5}{12}\\), or about 0.417.", "\\frac{5}{12}"),
        ("Answer: x\u2081 + x\u2082", "x_1+x_2"), ("The solutions are x = 2 and x = 3.", "2,3"),
        ("\\boxed{x=2} or \\boxed{x=3}", "2,3"), ("Yes.", "yes"), ("The answer is yes, since 3 < 4.", "yes"),
        ("Answer: 3/4 (0.75)", "\\frac34"), ("Answer: \\pi/4 radians", "\\frac{\\pi}{4}"),
        ("The coordinates are (2, 3).", "(2,3)"), ("The equation of the line is $$y=2x+1$$", "y=2x+1"),
    ],
)  # fmt: skip
def test_formulas(grader: MathGrader, said: str, gold: str) -> None:
    assert grader.grade(said, gold).is_right


@pytest.mark.parametrize(
    ("said", "kind", "gold"),
    [
        ("four", "integer", "4"), ("\\boxed{\\text{four}}", "integer", "4"),
        ("There are four objects.", "integer", "4"),
        ("The age gap is 38 - 34 = 4 years.", "integer", "4"), ("The fraction is 1/4 = 0.25.", "float", "0.25"),
        ("**Step 3:** So there are 4 objects.", "integer", "4"), ("The area is 4 cm\xb2.", "integer", "4"),
    ],
)  # fmt: skip
def test_numbers_of_mathvista(said: str, kind: AnswerType, gold: str) -> None:
    assert grade_mathvista(taken_answer(said, kind, ()), gold, kind, (), 2).mark is Mark.RIGHT


def test_percentages_of_mmmu() -> None:
    assert grade_mmmu_open("ANSWER: 12", "12%").is_right and grade_mmmu_open("ANSWER: 12\\%", "12").is_right
    assert not grade_mmmu_open("ANSWER: 0.12", "12%").is_right


@pytest.mark.parametrize("said", ["Not listed", "None of the options match.", "E2", "(fill in the right one)"])
def test_an_answer_that_is_no_option_is_not_looked_for_before_it(said: str) -> None:
    assert named_option(f"The value of the first is 10 cm.\n\nAnswer: {said}", 4, LENGTHS) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The closest answer is 25 atm. The answer is (G).", "(G)"), ("The answer is 5.\n\nThe answer is yes.", "yes"),
        ("Final Answer: Not Applicable", "Not Applicable"), ("Answer: not 5 but 6", "6"), ("We get x+1.", None),
        ("So $AB = x-1$ and we are done.", None), ("The correct answer is (A) (u, v) = (0, 0).", "(A) (u, v) = (0, 0)"),
        ("There are 2 rows. The number of factors of 5 in each of", None),
    ],
)  # fmt: skip
def test_the_value_that_is_said(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_an_entry_that_names_other_options() -> None:
    assert letters_named("F. A, B and C are correct") == "F"
