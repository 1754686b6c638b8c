"""Programs are tried on their tests, and never told what is right."""

from __future__ import annotations

import json

import pytest

from megatron_apriel.grading import programs
from megatron_apriel.grading.programs import grade_program, last_code_block, same_output
from megatron_apriel.grading.sandbox import Level, Sandbox, find_sandbox, why_not
from megatron_apriel.grading.verdict import Cause, Mark, Verdict


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if all(map(why_not, Level)):
        pytest.skip("this machine has no sandbox")
    return find_sandbox()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no test of slowness is right on a busy machine too."""
    monkeypatch.setattr(programs, "SECONDS", 120.0)


def graded(sandbox: Sandbox, program: str, function: str = "", inputs: tuple[str, ...] = ("2 3\n", "4 5\n"),
           outputs: tuple[str, ...] = ("5\n", "9\n")) -> Verdict:  # fmt: skip
    return grade_program(f"Here it is:\n```python\n{program}\n```\n", inputs, outputs, function, sandbox)


@pytest.mark.parametrize(
    ("program", "mark", "reason"),
    [
        ("print(sum(map(int, input().split())))", Mark.RIGHT, "2 tests passed"),
        ("a, b = map(int, input().split())\nprint(a + b + (a == 4))", Mark.WRONG, "test 2: it gives 10, not 9"),
        ("print(1 / 0)", Mark.WRONG, "test 1: ZeroDivisionError"),
        ("def", Mark.WRONG, "SyntaxError"),
        ("print(sum(map(int, input().split()))); exit(3)", Mark.RIGHT, "2 tests passed"),
        ("import os; os.abort()", Mark.WRONG, "test 1: signal 6"),
        ("print(5.0); print()", Mark.WRONG, "test 2: it gives 5.0"),
        ("import os; os.kill(os.getppid(), 9)", Mark.WRONG, "it ended its tests"),
    ],
)
def test_programs_that_read_and_write(sandbox: Sandbox, program: str, mark: Mark, reason: str) -> None:
    verdict = graded(sandbox, program)
    assert verdict.mark is mark and reason in verdict.reason
    assert verdict.parts["tests"] == 2 and str(sandbox.level) in verdict.parts["sandbox"]


@pytest.mark.parametrize(
    ("program", "mark"),
    [
        (
            "class Solution:\n    def add(self, a: List[int], b: int) -> int:\n        return [x + b for x in a]",
            Mark.RIGHT,
        ),
        ("def add(a, b):\n    print('seen')\n    return tuple(x + b for x in a)", Mark.RIGHT),
        ("def add(a, b):\n    return a", Mark.WRONG),
        ("def other(a, b):\n    return a", Mark.WRONG),
    ],
)
def test_functions(sandbox: Sandbox, program: str, mark: Mark) -> None:
    assert graded(sandbox, program, "add", ("[1, 2]\n3",), ("[4, 5]",)).mark is mark


def test_a_slow_program_gets_a_verdict_of_its_own(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SECONDS", 0.5)
    verdict = graded(sandbox, "while True: pass")
    assert (verdict.mark, verdict.cause) == (Mark.NONE, Cause.SLOW)


def test_what_is_right_is_not_in_the_sandbox(sandbox: Sandbox) -> None:
    search = """
import glob, json
for file in glob.glob("/proc/*/cmdline") + glob.glob("/proc/*/environ") + glob.glob("/tmp/**", recursive=True):
    try:
        if b"the" + b" canary" in open(file, "rb").read():
            print("found", file)
    except OSError:
        pass
"""
    verdict = graded(sandbox, search, inputs=("",), outputs=("the canary\n",))
    assert "it gives , not the canary" in verdict.reason


def test_responses_without_a_program(sandbox: Sandbox) -> None:
    assert grade_program("print(5)", ("",), ("5",), "", sandbox).cause is Cause.NO_ANSWER
    assert grade_program("```\nprint(5)\n```", (), (), "", sandbox).cause is Cause.DATA


def test_the_last_block_counts() -> None:
    assert last_code_block("```\nfirst\n```\nor\n```python\nsecond\nline\n```") == "second\nline"
    assert last_code_block("```\n```") is None and last_code_block("```python\ncut off") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("1.0", "1", True),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("Yes", "YES", False),
        ("0.1", "0.10000001", False),
        ("", "", True),
        ("sNaN", "1", False),
        ("sNaN 1", "sNaN 1.0", False),
    ],
)
def test_outputs_are_compared_line_by_line(ours: str, theirs: str, same: bool) -> None:
    assert same_output(ours, theirs) is same


def test_json_values_are_compared_as_such(sandbox: Sandbox) -> None:
    told = json.dumps({"a": [1, 2.0, None, True]})
    assert graded(sandbox, "def f(x):\n    return x", "f", (told,), (told.replace("2.0", "2"),)).is_right
