"""Boxes, whole numbers and math-verify."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from megatron_apriel.generate.answer import FinishReason
from megatron_apriel.grading import math_answers
from megatron_apriel.grading.boxed import last_boxed
from megatron_apriel.grading.final_answer import final_answer
from megatron_apriel.grading.line_process import BrokenProcessError, LineProcess, OutOfTimeError
from megatron_apriel.grading.math_answers import MathGrader
from megatron_apriel.grading.numbers import whole_number
from megatron_apriel.grading.responses import answer_of_text, final_response
from megatron_apriel.grading.spelling import plain_spelling
from megatron_apriel.grading.verdict import Cause, Mark, Verdict
from tests.unit.grading.conftest import CheckLinear


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{203}. Wait: \\boxed{204}", "204"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{7} and \\boxed{8", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x}", "\\left\\{ x"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\boxed{5} + 1}", "5"),
        ("\\boxed{5}, \\boxed{6}", "5, 6"),
        ("$\\boxed{5}$ and $\\boxed{6}$", "5, 6"),
        ("\\boxed{5}\\text{ or }\\boxed{6}", "5, 6"),
        ("\\boxed{5} \\boxed{6}", "6"),
        ("\\boxed{4}; then \\boxed{5}, \\boxed{6}", "5, 6"),
        ("\\boxed {6}", "6"),
        ("\\\\boxed{9}", "9"),
        ("} \\boxed{1} }", "1"),
        ("{\\boxed{2}", "2"),
        ("\\fbox{3}", "3"),
        ("\\boxed{", None),
        ("\\unboxed{4}", None),
        ("boxed{4}", None),
    ],
)
def test_the_last_box_that_is_closed(text: str, found: str | None) -> None:
    assert last_boxed(text) == found


def test_without_a_box_the_line_that_says_the_answer() -> None:
    assert final_answer("The answer is 3.\nNo: **Final answer:** 42.\nGoodbye") == "42"
    assert final_answer("The answer is 3, so \\boxed{4}") == "4"
    assert final_answer("The answer is **42**.") == "42"
    assert final_answer("**Answer:**\n\n42 cm") == "42 cm"
    assert final_answer("So.\n### Final answer\n42\nGoodbye") == "42"
    assert final_answer("The answer is $42$ dollars.") == "42"
    assert final_answer("The answer is $x$ or $y$") == "$x$ or $y$"
    assert final_answer("The answer is $2$ of 3") == "$2$ of 3"
    assert final_answer("It is 42") == "42"
    assert final_answer("answer:") is None


@pytest.mark.parametrize(
    "said",
    [
        "Final Answer: \\(204\\)", "**Final Answer:** $204$", "### Answer\n\n$$204$$",
        "The final answer is \\[204\\]", "answer = 204", "The answer is: **204**", "$m+n = \\boxed{204}$.",
        "\\boxed{m+n=204}", "\\boxed{\\text{Answer: } 204}", "\\boxed{204 \\pmod{1000}}", "\\boxed{\\mathbf{204}}",
        "\\boxed{\\,204\\,}", "\\boxed{$204$}", "\\boxed{\\(204\\)}", "\\boxed{204.}", "\\boxed{0204}",
        "The answer is 204!", "\u7b54\u6848\u662f 204", "\u7b54\u6848\uff1a204", "R\xe9ponse : 204",
        "Die Antwort ist 204.", "La respuesta es 204.", "\\framebox{204}", "\\boxed 204", "<answer>204</answer>",
        "{\"answer\": 204}", "{\"answer\": \"204\", \"n\": 7}", "The answer must be 204.",
        "The answer is therefore 204.", "**Answer** 204", "\\boxed{(204)}", "\\boxed{204\\ \\text{ways}}",
        "{'answer': '204'}", "Answer - 204", "Answer \u2192 204", "So for a final answer of **204**.", "Thus $204$",
        "Therefore 204.", "\u2234 204", "Final result: 204", "Answer: 204<|im_end|>", "\\boxed{\\bm{204}}",
        "\\boxed{204 = N}", "\\boxed{\\boldsymbol{204}}",
        "\\boxed{200+4}", "\\boxed{204, \\text{ as required}}", "The answer to the question is 204.",
    ],
)  # fmt: skip
def test_ways_to_say_a_number(grader: MathGrader, said: str) -> None:
    assert grader.grade(f"From 7 and 9 it follows.\n\n{said}", "204").is_right
    assert not grader.grade(f"From 7 and 9 it follows.\n\n{said}", "7").is_right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**Answer:**\n\\[\n61\n\\]", "61"), ("Final answer:\n$$\n61.\n$$\nDone.", "61"),
        ("Answer:\n$$\n\\begin{pmatrix} 6 \\\\\n1 \\end{pmatrix}\n$$", "\\begin{pmatrix} 6 \\\\ 1 \\end{pmatrix}"),
        ("**Final Answer**:\n\n$y = 61$", "y = 61"), ("\\[\n\\text{Answer: } 6 + \\sqrt{1}\n\\]", "6 + \\sqrt{1}"),
        ("$$\n\\text{Answer:} \\quad 6\\frac{1}{2}\n$$", "6\\frac{1}{2}"), ("\\[Answer: 61\\]", "61"),
        ("$$\\text{Answer: } 6x - 1.$$", "6x - 1"), ("Answer: $61 (without quotes)", "$61"),
        ("Answer: $61$ (without quotes) where $61$ is the answer.", "61"), ("Answer: 61 (cubic units)", "61"),
        ("Answer: $x$ equals 61.", "61"), ("Answer:\nThe sum of the first 3 and the last 4 terms is 61.", "61"),
        ("### Answer\nThe least $a^4 + b$, where $ab = 5$, is $61$.", "61"),
        ("Answer: Four francs are equivalent to 61 pence.", "61 pence"),
        ("\u7b54\u6848\uff1a\u7ea2\n\nThe answer is a colour.", "\u7ea2"),
        ("<answer>even</answer>\nThe answer is clear.", "even"), ("### Answer\neven\nThe answer is clear.", "even"),
        ("Answer: yes, as the mean is 61", "yes, as the mean is 61"), ("61\u7c73", "61\u7c73"),
        ("Answer: 61 is prime", "61 is prime"),
        ("The answer is 61, which is prime.", "61"), ("Answer: $61$ because $7 < 8$", "61"),
        ("Answer: 61, not 7", "61"),
        ("Answer: $\\frac{6}{1}$\n\nAnswer: $\\frac{6", "\\frac{6}{1}"), ("Answer: 61\n\nAnswer:", "61"),
        ("It has 7 parts.\n\nTherefore, the sum of $7x + 5$ is **61**.", "61"),
        ("So, with $y=3$, the value of $x$ is $61$.", "61"), ("Thus the volume is 61 cubic metres.", "61 cubic metres"),
        ("Hence $x = 61$.", "61"), ("\u56e0\u6b64 x = 61", "61"), ("Therefore, 61 works.", "61"),
        ("Thus $x = 6$ or $x = 1$.", None),
        ("The answer is 61.\n\nThis answer - it is prime - fits.", "61"),
        ("Answer: 61\n\nAn answer of 7 would be too small.", "61"),
        ("So the first is 6.5 V, and the second is 1 A.", None), ("So $x = 6 \\quad \\text{or} \\quad x = 1$", None),
        ("So, 6 is even and 1 is odd.", None), ("The value is 61.", "61"), ("Hence, it is a square.", None),
    ],
)  # fmt: skip
def test_what_a_response_concludes(text: str, found: str | None) -> None:
    assert final_answer(text) == found


@pytest.mark.parametrize(
    "said", ["204", "**204**", "$204$", "\\(204\\)", "204.", "x = 204", "204 cm", "204 square units"]
)
def test_a_response_that_is_its_answer(grader: MathGrader, said: str) -> None:
    assert grader.grade(said, "204").is_right


@pytest.mark.parametrize("said", ["Of 204 I know nothing.", "The answer should be an integer.", "\\boxed{204"])
def test_no_answer_is_guessed(grader: MathGrader, said: str) -> None:
    assert not grader.grade(said, "204").is_right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("70", "70"), ("070", "70"), ("+70", "70"), ("-070", "-70"), ("70.00", "70"), ("$70$", "70"), ("x = 70", "70"),
        ("1,234", "1234"), ("1{,}234", "1234"), ("1\\,234", "1234"), ("000", "0"), ("-0", "0"), ("\\text{70}", "70"),
        ("70^\\circ", "70"), ("\u221270", "-70"), ("7" * 5000, "7" * 5000),
        ("f(3) = 70", "70"), ("a_{10} = 70", "70"), ("x - y = 70", None), ("x = 1, y = 70", None),
        ("x = 7 or x = 70", None),
        ("70.5", None), ("7 0 x", None), ("1,23", None), ("", None), ("\u0667\u0660", None), ("1/2", None),
    ],
)  # fmt: skip
def test_whole_numbers(text: str, number: str | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("answer", "gold", "mark"),
    [
        ("070", "70", Mark.RIGHT),
        ("71", "70", Mark.WRONG),
        ("\\frac{9}{7}", "\\dfrac{9}{7}", Mark.RIGHT),
        ("0.5", "\\frac12", Mark.RIGHT),
        ("(1, 2]", "1 < x \\le 2", Mark.RIGHT),
        ("\\{2, 1\\}", "\\{1, 2\\}", Mark.RIGHT),
        ("x^2 + 2x + 1", "(x+1)^2", Mark.RIGHT),
        ("0.333", "\\frac13", Mark.WRONG),
        ("\\sqrt{2}", "1.5", Mark.WRONG),
        ("70~\\mathrm{cm}^2", "70", Mark.RIGHT),
        ("70\xb0", "70", Mark.RIGHT),
        ("70\\;,", "70", Mark.RIGHT),
        ("\uff17\uff10", "70", Mark.RIGHT),
        ("\\textcolor{red}{70}", "70", Mark.RIGHT),
        ("\\text{70 cm}", "70", Mark.RIGHT),
        ("1e3", "1000", Mark.RIGHT),
        ("\xbd", "0.5", Mark.RIGHT),
        ("2\xbd", "2.5", Mark.RIGHT),
        ("\\nicefrac{1}{2}", "\\frac12", Mark.RIGHT),
        ("\\dfrac\\pi4", "\\frac{\\pi}{4}", Mark.RIGHT),
        ("x\xb2+1", "x^2+1", Mark.RIGHT),
        ("1.5\xd710\u207b\xb3", "0.0015", Mark.RIGHT),
        ("1.5*10^-3", "0.0015", Mark.RIGHT),
        ("3*sqrt(2)", "3\\sqrt{2}", Mark.RIGHT),
        ("2 ln 3", "2\\ln 3", Mark.RIGHT),
        ("3 pi/4", "\\frac{3\\pi}{4}", Mark.RIGHT),
        ("45\\degree", "45", Mark.RIGHT),
        ("45\xba", "45", Mark.RIGHT),
        ("\u20133", "-3", Mark.RIGHT),
        ("3\\colon 4", "3:4", Mark.RIGHT),
        ("x \\ge 2 \\text{ and } x < 3", "[2,3)", Mark.RIGHT),
        ("x \\ge 2 \\text{ and } x > 3", "[2,3)", Mark.WRONG),
        (
            "\\left(\\begin{array}{cc}1&2\\\\3&4\\end{array}\\right)",
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            Mark.RIGHT,
        ),
        (
            "\\left(\\begin{array}{cc}1&2\\\\4&3\\end{array}\\right)",
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            Mark.WRONG,
        ),
        ("3 \\times 10^5", "3e5", Mark.RIGHT),
        ("1 1/2", "1.5", Mark.RIGHT),
        ("2\u221a3", "2\\sqrt{3}", Mark.RIGHT),
        ("2 \xd7 35", "70", Mark.RIGHT),
        ("x \u2264 3", "x \\le 3", Mark.RIGHT),
        ("50\\%", "50", Mark.RIGHT),
        ("1,234.50", "1234.5", Mark.RIGHT),
        ("(1, 2)", "(2, 1)", Mark.WRONG),
        ("[1, 2]", "(1, 2)", Mark.WRONG),
        ("12,34", "1234", Mark.WRONG),
        ("70 or 71", "70", Mark.WRONG),
        ("\\infty", "-\\infty", Mark.WRONG),
    ],
)
def test_equal_answers(grader: MathGrader, answer: str, gold: str, mark: Mark) -> None:
    assert grader.grade(f"So \\boxed{{{answer}}}.", gold).mark is mark


def test_gold_that_cannot_be_read_is_an_error_of_the_data(grader: MathGrader) -> None:
    assert grader.grade("\\boxed{3}", "\\frac{1}{").cause is Cause.DATA
    assert grader.grade("\\boxed{3}", "").cause is Cause.DATA


def test_what_takes_too_long_is_neither_right_nor_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with MathGrader(seconds=0.0) as impatient:
        monkeypatch.setattr(impatient._process, "_starting", 0.05)
        verdict = impatient.grade("\\boxed{\\frac{1}{3}}", "\\frac{2}{6}")
        assert (verdict.mark, verdict.cause) == (Mark.NONE, Cause.SLOW)


def test_a_long_answer_is_none(grader: MathGrader) -> None:
    assert grader.grade("\\boxed{" + "1+" * math_answers.MOST_LETTERS + "1}", "3").cause is Cause.NO_ANSWER


FINAL_CHANNEL = "<|start|>assistant<|channel|>final<|message|>"
TRAINED = "Here are my reasoning steps: maybe \\boxed{7}. [BEGIN FINAL RESPONSE] \\boxed{8} [END FINAL RESPONSE]<|end|>"


@pytest.mark.parametrize(
    ("text", "finish", "found"),
    [
        (TRAINED, FinishReason.STOP, "8"),
        ("maybe \\boxed{7}.\n[BEGIN FINAL RESPONSE]\n\\boxed{8}", FinishReason.STOP, "8"),
        ("so \\boxed{8}", FinishReason.STOP, "8"),
        ("Here are my reasoning steps: \\boxed{8}", FinishReason.STOP, Cause.NO_ANSWER),
        ("Here are my reasoning steps: \\boxed{8}", FinishReason.LENGTH, Cause.TRUNCATED),
        ("x [BEGIN FINAL RESPONSE] \\boxed{8", FinishReason.LENGTH, Cause.TRUNCATED),
        ("\\boxed{8}", FinishReason.LENGTH, Cause.TRUNCATED),
        ("[BEGIN FINAL RESPONSE]  [END FINAL RESPONSE]", FinishReason.STOP, Cause.NO_ANSWER),
        ("<think>maybe \\boxed{7}</think>\n\\boxed{8}", FinishReason.STOP, "8"),
        ("maybe \\boxed{7}</think> \\boxed{8}", FinishReason.STOP, "8"),
        ("[THINK]maybe \\boxed{7}[/THINK]\\boxed{8}", FinishReason.STOP, "8"),
        ("\u25c1think\u25b7maybe \\boxed{7}\u25c1/think\u25b7\\boxed{8}", FinishReason.STOP, "8"),
        (
            f"<|channel|>analysis<|message|>\\boxed{{7}}<|end|>{FINAL_CHANNEL}\\boxed{{8}}<|return|>",
            FinishReason.STOP,
            "8",
        ),
        ("<reasoning>maybe \\boxed{7}</reasoning> \\boxed{8}", FinishReason.STOP, "8"),
        ("\\boxed{8}, as </reasoning> says", FinishReason.STOP, "8"),
        ("<|channel|>analysis<|message|>maybe \\boxed{7}", FinishReason.STOP, Cause.NO_ANSWER),
        ("<think>maybe \\boxed{7}", FinishReason.STOP, Cause.NO_ANSWER),
        ("<think>\\boxed{7}</think>", FinishReason.STOP, Cause.NO_ANSWER),
        ("", FinishReason.STOP, Cause.NO_ANSWER),
        ("\\boxed{8}", FinishReason.FILTERED, Cause.FAILED),
    ],
)
def test_only_the_final_response_counts(text: str, finish: FinishReason, found: str | Cause) -> None:
    response = final_response(answer_of_text(text, finish))
    if isinstance(response, Verdict):
        assert (response.cause, response.mark) == (found, Mark.NONE)
    else:
        assert last_boxed(response) == found


LONG = (
    "A ",
    "{",
    "}",
    "\\boxed{",
    "\\boxed",
    "\\",
    "answer: ",
    "answer is (",
    "answer" + " " * 50,
    "**",
    "# answer\n",
    "answer is $",
    "\n",
    "0",
    "\\text{",
    "Therefore, x is ",
    "= 1 or ",
    "is not 5 ",
    "**5",
    "if the answer would be ",
    "Answer:\n$$\n",
    " (abc)",
    "  ",
    "\\,",
    "\\frac ",
    "\\left(\\begin{array}{",
)


@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("find", [last_boxed, final_answer, whole_number, plain_spelling])
def test_time_is_linear(find: Callable[[str], object], piece: str, check_linear: CheckLinear) -> None:
    check_linear(lambda text: find(f"{text}x"), piece)


@pytest.mark.parametrize("begun", ["answer: 5", "Therefore, it is 5", "answer:\n\\[\n"])
@pytest.mark.parametrize("piece", [" ", "*", "(", "is ", "\\quad ", " (ab", "$"])
def test_time_is_linear_behind_words_before_an_answer(begun: str, piece: str, check_linear: CheckLinear) -> None:
    check_linear(lambda text: final_answer(f"{begun}{text}x"), piece)


def test_a_process_that_ends_or_hangs_is_started_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "echo.py"
    program.write_text(
        "import sys, json, time\n"
        "for line in sys.stdin:\n"
        "    said = json.loads(line)\n"
        "    if said == 'hang': time.sleep(3600)\n"
        "    if said == 'end': sys.exit('it had enough')\n"
        "    print(line.strip() if said != 'nonsense' else 'no json', flush=True)\n",
        encoding="utf-8",
    )
    with LineProcess([sys.executable, str(program)], 1.0) as process:
        assert process.ask({"a": [1, "é\n"]}) == {"a": [1, "é\n"]}  # with the time that a start has
        with pytest.raises(OutOfTimeError):
            process.ask("hang")
        assert process.ask("again") == "again"
    with LineProcess([sys.executable, str(program)], 60.0) as process:
        with pytest.raises(BrokenProcessError, match="it had enough"):
            process.ask("end")
        with pytest.raises(BrokenProcessError, match="no json"):
            process.ask("nonsense")
        assert process.ask("again") == "again"
    with LineProcess(["/nonexistent/program"], 1.0) as absent, pytest.raises(BrokenProcessError, match="No such file"):
        absent.ask(1)


def test_a_late_answer_is_not_taken_for_the_next() -> None:
    """A signal may end the wait for an answer, and whoever caught that may ask on."""
    echo = (
        "import sys, time\nfor line in sys.stdin:\n    time.sleep(line == '2\\n')\n    print(line, end='', flush=True)"
    )
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
    try:
        with LineProcess([sys.executable, "-c", echo], 60.0) as process:
            assert process.ask(1) == 1
            threading.Timer(0.2, signal.pthread_kill, (main_thread, signal.SIGUSR2)).start()
            with pytest.raises(SystemExit):
                process.ask(2)
            assert process.ask(3) == 3
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    "piece",
    ["<tool_calls>[]</tool_calls>", "[END ", '<tool_calls>["a"', "[BEGIN FINAL RESPONSE]", "</think>", FINAL_CHANNEL],
)
def test_the_final_response_is_found_in_linear_time(piece: str, check_linear: CheckLinear) -> None:
    check_linear(lambda text: final_response(answer_of_text(f"x [BEGIN FINAL RESPONSE] {text}")), piece)
