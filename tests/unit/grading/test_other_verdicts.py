"""MathVista's rule, judges, and graders whose environment is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.generate.answer import Answer, FinishReason
from megatron_apriel.grading.ifbench_process import check, variants
from megatron_apriel.grading.instructions import InstructionGrader
from megatron_apriel.grading.judge import CLOSED_QUESTION, FIGURE, LONG_CONTEXT, Form
from megatron_apriel.grading.mathvista import AnswerType, edit_distance, grade_mathvista, taken_answer
from megatron_apriel.grading.scorer_environments import plain_environment, scorer_python
from megatron_apriel.grading.verdict import Cause, Mark
from tests.unit.grading.conftest import CheckLinear


@pytest.mark.parametrize(
    ("found", "gold", "kind", "choices", "precision", "is_right"),
    [
        ("B", "two", "text", ("one", "two"), None, True),
        ("(b) surely", "two", "text", ("one", "two"), None, True),
        ("b", "two", "text", ("one", "two"), None, False),  # a small letter alone is compared as a text
        ("tow", "two", "text", ("one", "two"), None, True),
        ("(d)", "one", "text", ("one", "two"), None, True),  # beyond the choices: nearest to the letter D
        ("3.7", "3", "integer", (), None, True),
        ("3.149", "3.15", "float", (), 2.0, True),
        ("3.1", "3.10", "float", (), 2, False),  # compared as texts
        ("[1, 2]", "[1, 2]", "list", (), None, True),
    ],
)
def test_mathvista(
    found: str, gold: str, kind: AnswerType, choices: tuple[str, ...], precision: float | None, is_right: bool
) -> None:
    assert grade_mathvista(found, gold, kind, choices, precision).is_right is is_right


@pytest.mark.parametrize(
    ("response", "kind", "choices", "taken"),
    [
        ("In ABC it is so.\n**ANSWER: B**", "text", ("one", "two"), "(B)"),
        ("In ABC it is \\boxed{\\text{two}}", "text", ("one", "two"), "(B)"),
        ("In ABC the answer is two.", "text", ("one", "two"), "(B)"),
        ("So \\boxed{B}", "text", ("one", "two"), "(B)"),
        ("So \\boxed{tow}", "text", ("one", "two"), "tow"),
        ("It is (B), I think", "text", ("one", "two"), "(B)"),
        ("So \\boxed{12\\text{ cm}}", "integer", (), "12"),
        ("So \\boxed{\\$1,200}", "integer", (), "1200"),
        ("The answer is $x = 1.25$.", "float", (), "1.25"),
        ("So \\boxed{\\frac{1}{4}}", "float", (), "0.25"),
        ("So \\boxed{50\\%}", "integer", (), "50"),
        ("So \\boxed{-3^\\circ}", "integer", (), "-3"),
        ("So \\boxed{3 or 4}", "integer", (), "3 or 4"),
        ("So \\boxed{\\left[1,2\\right]}", "list", (), "[1, 2]"),
        ("So \\boxed{(1, 2)}", "list", (), "[1, 2]"),
        ("Nothing", "integer", (), None),
        ("They are [0.2, 0.4].", "list", (), "[0.2, 0.4]"),
        ("So \\boxed{1 and\\s 2}", "list", (), "1 and\\s 2"),
        ("So \\boxed{3 \\times 10^5}", "integer", (), "3e5"),
        ("So \\boxed{2.5e-3}", "float", (), "2.5e-3"),
        ("So \\boxed{2\\frac{1}{2}}", "float", (), "2.5"),
        ("42", "integer", (), "42"),
        ("\\boxed{1{,}200}", "integer", (), "1200"),
        ("$\\text{7}$", "integer", (), "7"),
        ("\\boxed{\\frac14}", "float", (), "0.25"),
        ("The value is \u22123 there.", "integer", (), "-3"),
        ("$[1, 2]$", "list", (), "[1, 2]"),
        ("3.5 cm.", "float", (), "3.5"),
        ("The nail is about 2 inches long.", "integer", (), "2"),
        ("The area is 5 cm\xb2.", "integer", (), "5"),
        ("It has 10\xb2 there.", "integer", (), None),
        ("There are 8 in 2 rows.\n\nSo there are **6 objects** left.\nI hope this helps!", "integer", (), "6"),
        ("So the answer to your question is 44.", "integer", (), "44"),
        ("It has 3 rows of 4.", "integer", (), None),
        ("With 12 alone it is not possible to say.", "integer", (), None),
        ("Yes, the pieces are cut.", "text", ("Yes", "No"), "(A)"),
        ("I'm sorry, I can't see it.", "text", ("one", "two", "x", "y", "z", "a", "b", "c", "d"), None),
    ],
)
def test_what_is_taken_out_for_mathvista(
    response: str, kind: AnswerType, choices: tuple[str, ...], taken: str | None
) -> None:
    assert taken_answer(response, kind, choices) == taken


def test_mathvista_without_an_answer() -> None:
    for kind, found in (("integer", "many"), ("float", "1e"), ("integer", "1e999"), ("integer", "nan"), ("text", None)):
        assert grade_mathvista(found, "3", kind, (), 1).cause is Cause.NO_ANSWER  # type: ignore[arg-type]
    assert grade_mathvista("x", "three", "text", ("one", "two")).cause is Cause.DATA


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("a", "a", 0)]
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("form", "reply", "mark"),
    [
        (LONG_CONTEXT, "CORRECT", Mark.RIGHT),
        (LONG_CONTEXT, " INCORRECT\n", Mark.WRONG),
        (LONG_CONTEXT, "It is CORRECT", Mark.NONE),
        (LONG_CONTEXT, "correct", Mark.NONE),
        (CLOSED_QUESTION, "extracted_final_answer: 4\nreasoning: the same\ncorrect: yes\nconfidence: 90%", Mark.RIGHT),
        (CLOSED_QUESTION, "**correct:** No.", Mark.WRONG),
        (CLOSED_QUESTION, "correct: yes\ncorrect: no", Mark.NONE),
        (CLOSED_QUESTION, "the answer is correct: yes indeed", Mark.NONE),
        (FIGURE, '{"extracted_answer": "4", "score": 1}', Mark.RIGHT),
        (FIGURE, '```json\n{"extracted_answer": "4", "score": 0}\n```', Mark.WRONG),
        (LONG_CONTEXT, "**CORRECT**", Mark.RIGHT),
        (LONG_CONTEXT, "INCORRECT.", Mark.WRONG),
        (LONG_CONTEXT, "CORRECT INCORRECT", Mark.NONE),
        (FIGURE, '{"extracted_answer": "\\sigma_1", "score": 1}', Mark.RIGHT),
        (FIGURE, '```\n{"extracted_answer": "$\\theta \\times 2$", "score": 0}\n```', Mark.WRONG),
        (FIGURE, '```json {"extracted_answer": "4", "score": 1} ```', Mark.RIGHT),
        (FIGURE, '{"score": 1} or {"score": 0}', Mark.NONE),
        (CLOSED_QUESTION, '- **correct**: "yes",', Mark.RIGHT),
        (CLOSED_QUESTION, "correct: no (it differs)", Mark.WRONG),
        (CLOSED_QUESTION, "**correct:**\nyes", Mark.RIGHT),
        (CLOSED_QUESTION, "correct: yes<|im_end|>", Mark.RIGHT),
        (CLOSED_QUESTION, '{"reasoning": "the same", "correct": "no", "confidence": 90}', Mark.WRONG),
        (CLOSED_QUESTION, "correct: yes or no", Mark.NONE),
        (CLOSED_QUESTION, "correct: yes/no", Mark.NONE),
        (CLOSED_QUESTION, "correct: yes, but only in part", Mark.NONE),
        (CLOSED_QUESTION, "correct: yes\nWait, correct: no", Mark.NONE),
        (CLOSED_QUESTION, "incorrect: yes", Mark.NONE),
        (CLOSED_QUESTION, "correct: partially", Mark.NONE),
        (FIGURE, 'Here it is:\n```json\n{"extracted_answer": "{4", "score": 1}\n```\nThey match.', Mark.RIGHT),
        (FIGURE, '{"extracted_answer": "a\nb", "score": "0"}', Mark.WRONG),
        (FIGURE, '{"extracted_answer": {"unit": "m", "value": 4}, "score": 1}', Mark.RIGHT),
        (FIGURE, '{"extracted_answer": {"score": 1}}', Mark.NONE),
        (FIGURE, '{"score": 0.5}', Mark.NONE),
        (FIGURE, '{"score": true}', Mark.NONE),
        (FIGURE, '{"score": 2}', Mark.NONE),
        (FIGURE, "score: 1", Mark.NONE),
    ],
)
def test_replies_of_judges_are_read_strictly(form: Form, reply: str, mark: Mark) -> None:
    asked = form.question("How {many}?", "4", "It is {4}.")
    assert "How {many}?" in asked.turns[0].text and "It is {4}." in asked.turns[0].text
    assert asked.sampling.greedy
    verdict = form.verdict_of(Answer("CORRECT or not?", reply, finish=FinishReason.STOP))
    assert verdict.mark is mark
    assert (verdict.cause is Cause.CHECK) == (mark is Mark.NONE)


@pytest.mark.parametrize("piece", ['{"', '{\\"', '{"a": {', '{"\\"', "correct:\n", "{", "correct: yes "])
@pytest.mark.parametrize("form", [CLOSED_QUESTION, FIGURE, LONG_CONTEXT])
def test_replies_are_read_in_linear_time(form: Form, piece: str, check_linear: CheckLinear) -> None:
    check_linear(form.read, piece)


def test_a_judge_that_fails_gives_no_verdict() -> None:
    assert FIGURE.verdict_of(None, "it is gone.").cause is Cause.CHECK
    assert LONG_CONTEXT.verdict_of(Answer("", "CORRECT", finish=FinishReason.LENGTH)).mark is Mark.NONE


def test_environments_of_their_own_are_named_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path))
    with pytest.raises(ConfigError, match="make scorers"):
        InstructionGrader()
    (tmp_path / "ifbench" / "bin").mkdir(parents=True)
    (tmp_path / "ifbench" / "bin" / "python").touch()
    assert scorer_python("ifbench") == tmp_path / "ifbench" / "bin" / "python"


def test_such_an_environment_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NLTK_DATA", "/data")
    assert plain_environment("NLTK_DATA") == {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "NLTK_DATA": "/data"}


class Checker:
    """Wants a word; it is told the prompt too."""

    def __init__(self, name: str) -> None:
        self.given: dict[str, object] = {}

    def build_description(self, **given: object) -> None:
        self.given |= given

    def get_instruction_args(self) -> dict[str, object]:
        return {"prompt": None}

    def check_following(self, text: str) -> bool:
        assert self.given["prompt"] == "Say it."
        if self.given["word"] == "few" and "\n" not in text:
            raise ZeroDivisionError
        if self.given["word"] == "":
            raise LookupError("\n***\n  Resource tagger not found.\n***")
        return text.startswith(str(self.given["word"]))


def test_instructions_are_checked_strictly_and_loosely() -> None:
    request = {
        "prompt": "Say it.", "response": "*Sure*:\n**yes**\nBye", "instructions": ["a"] * 4,
        "arguments": [{"word": "*Sure"}, {"word": "yes", "other": None}, {"word": "no"}, {"word": ""}],
    }  # fmt: skip
    assert check(request, {"a": Checker}) == [
        {"strict": True, "loose": True},
        {"strict": False, "loose": True},
        {"strict": False, "loose": False},
        {"problem": "Resource tagger not found."},
    ]


@pytest.mark.parametrize(("response", "strict", "loose"), [("few\nBye", True, True), ("Yes.\nfew", False, None)])
def test_a_checker_that_fails_on_a_variant_does_not_undo_the_strict_rule(
    response: str, strict: bool, loose: bool | None
) -> None:
    request = {"prompt": "Say it.", "response": response, "instructions": ["a"], "arguments": [{"word": "few"}]}
    assert check(request, {"a": Checker}) == [{"strict": strict, "loose": loose}]


def test_the_eight_variants_of_the_loose_rule() -> None:
    assert variants("*a*\nb\nc") == ["*a*\nb\nc", "a\nb\nc", "b\nc", "*a*\nb", "b", "b\nc", "a\nb", "b"]
