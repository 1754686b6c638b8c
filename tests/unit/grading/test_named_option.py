"""The option that a response names: forms that models write, with verdicts of a person who reads them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from megatron_apriel.grading.letters import grade_letter
from megatron_apriel.grading.named_option import named_option
from megatron_apriel.grading.verdict import Cause, Mark

CARS = ("two red cars", "a red car", "Blue", "none of them")
NUMBERS = ("4", "42 cm", "$45^{\\circ}$", "$\\frac{5}{12}$", "$2\\pi$", "$\\pi$")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("ANSWER: B", "B"), ("answer: b", "B"), ("**ANSWER: B**", "B"), ("ANSWER: **B**\n\nThis is in the USA.", "B"),
        ("ANSWER: (B)", "B"), ("ANSWER: $\\boxed{B}$", "B"), ("ANSWER: \\boxed{\\text{B}}", "B"),
        ("ANSWER: \\( \\text{B} \\)", "B"), ("Answer: \\( B \\)", "B"), ("Answer: `d`", "D"), ("Answer: (d) blue", "D"),
        ("ANSWER: B) red, not A.", "B"), ("ANSWER: B, not C", "B"), ("ANSWER:\n\n**B**", "B"),
        ("ANSWER: A\nWait.\nANSWER: D", "D"), ("ANSWER: Option B", "B"), ("ANSWER: the correct option is (B).", "B"),
        ("### Final Answer:\nC", "C"), ("Final answer - see below.\n\nAnswer choice: C", "C"),
        ("\\[\n\\boxed{\\text{Answer: } C}\n\\]", "C"), ("Answer: B (Reduce A)", "B"), ("Answer: A. (D)", "A"),
        ("ANSWER: \u24b7", "B"), ("ANSWER\uff1a\uff08\uff22\uff09", "B"), ("Answer: \u0412", "B"),
        ("Answer with the option: G", "G"), ("ANSWER: [LETTER] is what I write.\nANSWER: C", "C"),
        ("ANSWER: C\n\nOptions A and B are wrong because (A) is too small.", "C"),
        ("So A fails and B fails. ANSWER: C. Note that D is close.", "C"),
        ("answer: B</s>", "B"), ('{"answer": "C"}', "C"), ("```\nANSWER: C\n```", "C"), ("- Answer: C", "C"),
        ("**Answer:**\n\nThe mass of the probe is **70 kg**, which is **option C**.", "C"),
        ("<answer>B</answer>", "B"), ("<answer> B. 5 cm </answer>", "B"), ("{'answer': 'B'}", "B"),
        ('{"answer_letter": "B"}', "B"), ('{"choice": "B"}', "B"), ("ANSWER: 'B'", "B"), ("Answer - B", "B"),
        ("Answer \u2192 B", "B"), ("ANSWER = B", "B"), ("| Answer | B |", "B"), ("__ANSWER: B__", "B"), ("Ans. B", "B"),
        ("Correct option: B", "B"), ("My choice: B", "B"), ("**Conclusion:** B", "B"), ("ANSWER: B <|im_end|>", "B"),
        ("Answer: B\nI checked this answer - A is too small.", "B"),
        ("Answer: the count is 7, so (C) it is.", "C"), ("The answer is B.\n\nAnswer: V\u2081(t) = 3", "B"),
    ],
)  # fmt: skip
def test_the_line_that_prompts_ask_for(text: str, letter: str) -> None:
    assert named_option(text, 10) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"), ("The correct answer is: **C**", "C"), ("So the answer must be C, not B.", "C"),
        ("The answer (from the table) is C, while option D has too few.", "C"),
        ("The answer is not A but B.", "B"), ("It isn't (A); the correct option is (D).", "D"),
        ("The best choice would be option (D) because (A) is wrong.", "D"), ("I choose B.", "B"),
        ("I would go with (E).", "E"), ("C is the correct answer.", "C"), ("Therefore (C) is the right option.", "C"),
        ("Option **C** is correct.", "C"), ("A is wrong. B is wrong. Hence option C is correct.", "C"),
        ("The correct answer is C: the S isomer.", "C"), ("The answer is D: b.", "D"),
        ("The answer is B:\n\nV(t) = 3t", "B"),
        ("The closest answer (with one decimal) is **C. -0.7**.", "C"), ("The mass of the probe is **C. 70 kg**.", "C"),
        ("A is wrong, and so is (B).\n\nTherefore, the false statement is C.", "C"),
        ("The product is **D) ethanol**.\n\nIt boils at 78 degrees.", "D"),
        ("The answer is (A). Wait, no. The answer is (B).", "B"), ("\\boxed{C}", "C"),
        ("$\\boxed{\\textbf{(C) }5}$", "C"),
        ("So \\boxed{A}? No: \\boxed{\\mathrm{D}}", "D"), ("\\boxed{\\text{C. } 5 \\text{ cm}}", "C"),
        ("The correct answer is\n\nJ. $0 \\pi$ A", "J"), ("The closest option is \\( (J) -0.086 \\).", "J"),
        ("I'd go with B.", "B"), ("So it must be B.", "B"), ("It's B.", "B"), ("\u2192 B", "B"), ("\u2234 B", "B"),
        ("A fails.\n\nTherefore: **B**", "B"), ("Thus B.", "B"), ("In conclusion, (B).", "B"), ("Not A but B.", "B"),
        ("So, B: the larger one.", "B"), ("A and C are wrong. That leaves B.", "B"), ("option b is correct", "B"),
        ("choice b", "B"), ("Correct: B", "B"), ("\u2705 B", "B"), ("Answer: \u2705 B", "B"),
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("**B**", "B"), ("B.", "B"), ("<s> B", "B"), ("$\\text{B}$", "B"),
        ("B. 0.25 M", "B"), ("(B) 5 V", "B"), ("B: 100 cos(2t) V", "B"), ("**B. JOHANNES VERMEER**", "B"),
        ("B is closer. Point B is nearer than point A.", "B"), ("Option D: $\\sigma = 5$", "D"),
        ("B\n\nA is in the foreground, and C is not.", "B"), ("We get 5 V.\n\nMatching the options:\n\nF. 5 V", "F"),
        ("A. False\nB. True\nC. False\n\nThe answer:\nB. True", "B"),
        ("The answer is C. That leaves A with nothing.", "C"),
    ],
)  # fmt: skip
def test_other_ways_to_say_it(text: str, letter: str) -> None:
    assert named_option(text, 10) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\u7b54\u6848\uff1aC", "C"), ("\u6240\u4ee5\u7b54\u6848\u662fB\u3002", "B"), ("\u7b54\u6848\u4e3a D", "D"),
        ("\u6545\u9009B\u3002", "B"), ("Antwort: C", "C"), ("Die richtige Antwort ist (C).", "C"),
        ("R\xe9ponse : C", "C"), ("La r\xe9ponse est C.", "C"), ("Respuesta: C", "C"),
        ("La respuesta correcta es la C.", "C"),
        ("A resposta correta \xe9 a letra C", "C"), ("\u041e\u0442\u0432\u0435\u0442: C", "C"),
        ("\u7b54\u3048\u306fC\u3067\u3059\u3002", "C"), ("\u6b63\u89e3\u306fC\u3067\u3059\u3002", "C"),
        ("\uc815\ub2f5\uc740 C\uc785\ub2c8\ub2e4.", "C"), ("\u0909\u0924\u094d\u0924\u0930: C", "C"),
        ("\u7b54\u6848\u662f\u9009\u9879C\uff1a\u732b", "C"), ("\u6240\u4ee5\u6b63\u786e\u9009\u9879\u4e3aC", "C"),
        ("La bonne r\xe9ponse est la r\xe9ponse C.", "C"), ("A alternativa correta \xe9 a C.", "C"), ("\ub2f5: C", "C"),
        ("\uc815\ub2f5: C", "C"), ("\u7b54\u3048\uff1aC", "C"),
    ],
)  # fmt: skip
def test_other_languages(text: str, letter: str) -> None:
    assert named_option(text, 4) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", "I'm sorry, I can't help with that.", "I cannot see the image. Please describe it.",
        "As an AI, I do not know.", "ANSWER:", "ANSWER: None of the above", "ANSWER: not listed",
        "The answer is a red car.", "The answer is in the USA.", "Answer: I cannot determine it.",
        "The answer is neither A nor B.", "The first, (A), is too small, and (B) too big.", "A. one\nB. two\nC. three",
        "So A is larger than B.", "Thus a person walks.", "answer = \"Yes\"",
        "It could be A or B.", "Which of A, B, C, D?", "Answer: E2", "The cost in Year A was 5.",
    ],
)  # fmt: skip
def test_no_letter_is_guessed(text: str) -> None:
    assert named_option(text, 10) is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("ANSWER: A, C", "AC"),
        ("ANSWER: A or B", "AB"),
        ("The answer is either (A) or (D).", "AD"),
        ("Choice: (A/B)", "AB"),
        ("A, B", "AB"),
        ("\\boxed{A \\text{ or } B}", "AB"),
    ],
)
def test_two_letters_are_no_answer(text: str, letters: str | None) -> None:
    assert named_option(text, 10) == letters
    assert grade_letter(text, "A", 10, "labelled").cause is Cause.NO_ANSWER


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("ANSWER: Blue", CARS, "C"), ("ANSWER: a red car", CARS, "B"), ("ANSWER: A red car.", CARS, "B"),
        ("ANSWER: A", CARS, "A"), ("The answer is two red cars.", CARS, "A"), ("\\boxed{\\text{blue}}", CARS, "C"),
        ("Blue", CARS, "C"), ("Blue, because of the paint.", CARS, "C"), ("ANSWER: none of them", CARS, "D"),
        ("It shows the colour blue.", CARS, "C"), ("red or blue", CARS, "C"), ("ANSWER: green", CARS, None),
        ("ANSWER: 4", NUMBERS, "A"), ("ANSWER: 42", NUMBERS, "B"), ("\\boxed{42}", NUMBERS, "B"),
        ("The answer is 45\xb0.", NUMBERS, "C"), ("ANSWER: 45 degrees", NUMBERS, "C"), ("\\boxed{5/12}", NUMBERS, "D"),
        ("\\boxed{\\dfrac{5}{12}}", NUMBERS, "D"), ("\\boxed{2 \\pi}", NUMBERS, "E"), ("\\boxed{\\pi}", NUMBERS, "F"),
        ("\\boxed{\\frac{5\\pi}{3}+2}", NUMBERS, None), ("\\boxed{142}", NUMBERS, None),
        ("\\boxed{4.5}", NUMBERS, None),
        ("ANSWER: IV", ("I", "II", "III", "IV"), "D"), ("J. V", (*"QRSTUWXYZ", "V"), "J"),
        ("ANSWER: E", ("K", "E", "N", "G"), "B"), ("yes", ("yes", "no"), "A"), ("No, it is not.", ("yes", "no"), "B"),
        ("It corresponds to point \"C\" there.", ("Point A", "Point B", "Point C"), "C"),
        ("ANSWER: A and B", ("one", "two", "A and B"), "C"),
        ("The answer is Blue, not a red car.", CARS, "C"), ("It is not Blue.", CARS, None),
        ("ANSWER: A person walks", ("two dogs", "a cat", "person walks"), "C"),
        ("ANSWER: A large animal", ("two dogs", "a cat", "person walks"), None),
        ("ANSWER: A the dogs", ("two dogs", "a cat", "person walks"), "A"),
        ("The answer is A rather than B.", ("two dogs", "a cat", "person walks"), "A"),
        ("R, D, N\nfor the code", ("A, R, N", "R, D, N"), "B"), ("2\u221a3", ("\u221a{3}", "2\u221a{3}"), "B"),
        ("\\boxed{2\\sqrt{3}}", ("\u221a{3}", "2\u221a{3}"), "B"), ("It is 2 \\times 3 wide.", ("3", "4"), None),
        ("\\boxed{63\\text{C}48}", ("A", "B", "C"), None),
    ],
)  # fmt: skip
def test_an_options_text_in_place_of_its_letter(text: str, choices: Sequence[str], letter: str | None) -> None:
    assert named_option(text, len(choices), choices) == letter


def test_verdicts() -> None:
    assert grade_letter("ANSWER: Blue", "C", 4, "labelled", CARS).mark is Mark.RIGHT
    assert grade_letter("ANSWER: Blue", "C", 4, "labelled").cause is Cause.NO_ANSWER
    assert grade_letter("ANSWER: J", "C", 4, "labelled", CARS).mark is Mark.WRONG
    assert grade_letter("I'm sorry.", "C", 4, "labelled", CARS).cause is Cause.NO_ANSWER
