"""SciCode's steps: the code that is taken out of a response, and whether it passes in the sandbox."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_apriel.grading.sandbox import Level, find_sandbox, why_not
from megatron_apriel.grading.scicode import StepGrader, python_block
from megatron_apriel.grading.scorer_environments import package_files, plain_environment, scorer_python
from megatron_apriel.grading.verdict import Cause, Mark, Verdict
from tests.unit.grading.conftest import CheckLinear

NUMBERS = """
import ast, json, sys
import h5py
from scicode.parse.parse import save_data_to_hdf5
problems, target = sys.argv[1:]
with h5py.File(target, "w") as file:
    for problem in map(json.loads, open(problems)):
        if problem["problem_id"] not in ("1", "19", "70"):
            continue
        names = {}
        exec(problem["required_dependencies"], names)
        for step in problem["sub_steps"]:
            exec(step["ground_truth_code"], names)
            for number, test in enumerate(step["test_cases"], 1):
                *before, asserted = ast.parse(test).body
                own = dict(names)
                exec(compile(ast.Module(before, []), "test", "exec"), own)
                (found,) = (
                    [one for one in call.args if getattr(one, "id", "") != "target"] for call in ast.walk(asserted)
                    if isinstance(call, ast.Call) and any(getattr(one, "id", "") == "target" for one in call.args)
                )
                value = eval(compile(ast.Expression(found[0]), "test", "eval"), own)
                group = file.create_group(f"{step['step_number']}/test{number}")
                for place, part in enumerate(value if isinstance(value, tuple) else (value,), 1):
                    save_data_to_hdf5(f"var{place}", part, group)
"""
"""Makes ``test_data.h5`` of what the solutions of three problems give to their own tests."""
PARSE = """
import json
def process_hdf5_to_tuple(step, count, path):
    return json.loads(open(path).read())[step][:count]
"""


def by_the_harness(response: str) -> str | None:
    """What nvidia-scicode 26.3 does with its ``aa_regex.txt``."""
    match = re.search(r"(?<=```python\n)((?:\n|.)+?)(?=\n```)", response, re.DOTALL)
    if match is None:
        return None
    return re.sub(r"^\s*(import .*|from .*\s+import\s+.*)", "", match[0], flags=re.MULTILINE)


@pytest.mark.parametrize(
    "response",
    [
        "So:\n```python\ndef f():\n    return 1\n```\nThat is it.",
        "```python\na = 1\n```\nor\n```python\na = 2\n```",
        "```py\na = 1\n```",
        "```python \na = 1\n```",
        "```\na = 1\n```\n```python\na = 2\n```",
        "```python\n\n```\n",
        "```python\n```",
        "```python\na = 1",
        "a = 1",
        "```python\nimport os\nimport numpy as np, sys\nfrom os import path\n    import re\nimportant = 1\n```",
        "```python\nx = 'import y'\ny = 2  # from import\n```",
        "```python\nfrom a.b import (\n    c,\n)\nfrom_here = 2\nfrom x import y as z\nimport\n```",
        "```python\ndef f():\n    import math\n    from math import sin\n    return math.pi\n```",
    ],
)
def test_the_code_of_a_response_is_the_harness_own(response: str) -> None:
    ours, theirs = python_block(response), by_the_harness(response)
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:  # blank lines before an import are the pattern's, too
        assert [line for line in ours.split("\n") if line.strip()] == [one for one in theirs.split("\n") if one.strip()]


@pytest.mark.parametrize(
    "piece", ["```python\n", "\n```", "```python\n\n", "from ", "import \n", "from  import ", "\n"]
)
def test_taking_code_out_is_linear(check_linear: CheckLinear, piece: str) -> None:
    check_linear(lambda text: python_block(f"```python\n{text}\n```"), piece)


@pytest.fixture
def grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepGrader:
    """With a stand-in for SciCode's package, whose targets are JSON."""
    if all(map(why_not, Level)):
        pytest.skip("this machine has no sandbox")
    environment = tmp_path / "scorers" / "scicode"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    (packages / "scicode" / "parse").mkdir(parents=True)
    (packages / "scicode" / "parse" / "parse.py").write_text(PARSE)
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path / "scorers"))
    targets = tmp_path / "test_data.h5"
    targets.write_text(json.dumps({"1.2": [5, 7]}))
    return StepGrader(targets, find_sandbox())


def graded(grader: StepGrader, code: str, step: str = "1.2") -> Verdict:
    tests = ["assert add(2, 3) == target", "x = 3\nassert add(x, 4) == target"]
    return grader.grade(f"```python\n{code}\n```", step, "import math", ["def one():\n    return int(1.0)"], tests)


@pytest.mark.parametrize(
    ("code", "mark", "cause", "reason"),
    [
        ("def add(a, b):\n    return math.trunc(a + b) * one()", Mark.RIGHT, Cause.ANSWER, "2 tests passed"),
        ("targets = []\ndef add(a, b):\n    return a + b", Mark.RIGHT, Cause.ANSWER, "2 tests passed"),
        ("def add(a, b):\n    return a + b + (b == 4)", Mark.WRONG, Cause.ANSWER, "AssertionError"),
        ("def add(a, b):\n    return a / 0", Mark.WRONG, Cause.ANSWER, "ZeroDivisionError"),
        ("def add(a, b)\n    return a", Mark.WRONG, Cause.ANSWER, "SyntaxError"),
        ("raise SystemExit(0)", Mark.WRONG, Cause.ANSWER, "it ended before its tests"),
        ("import os\nos._exit(0)", Mark.WRONG, Cause.ANSWER, "NameError"),
    ],
)
def test_steps_in_the_sandbox(grader: StepGrader, code: str, mark: Mark, cause: Cause, reason: str) -> None:
    verdict = graded(grader, code)
    assert (verdict.mark, verdict.cause) == (mark, cause) and reason in verdict.reason


def test_what_cannot_be_checked_is_no_wrong_answer(grader: StepGrader) -> None:
    verdict = graded(grader, "def add(a, b):\n    return a + b", "9.9")
    assert (verdict.mark, verdict.cause) == (Mark.NONE, Cause.CHECK) and "'9.9'" in verdict.reason
    assert grader.grade("No code.", "1.2", "", [], ["assert True"]).cause is Cause.NO_ANSWER


def test_a_slow_step_gets_a_verdict_of_its_own(grader: StepGrader, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    sandbox = grader._sandbox
    monkeypatch.setattr(grader, "_sandbox", replace(sandbox, limits=replace(sandbox.limits, seconds=1.5)))
    assert graded(grader, "while True:\n    pass").cause is Cause.SLOW


@pytest.mark.skipif(not package_files("scicode", "scicode"), reason="needs SciCode's environment: make scorers")
def test_the_authors_own_solutions_pass(tmp_path: Path) -> None:
    if all(map(why_not, Level)):
        pytest.skip("this machine has no sandbox")
    (problems,) = package_files("scicode", "scicode/data/problems_dev.jsonl")
    targets = tmp_path / "test_data.h5"
    command = [str(scorer_python("scicode")), "-c", NUMBERS, str(problems), str(targets)]
    subprocess.run(command, check=True, env=plain_environment())
    grader, marks = StepGrader(targets, find_sandbox()), []
    for problem in map(json.loads, problems.read_text(encoding="utf-8").splitlines()):
        if problem["problem_id"] not in ("1", "19", "70"):
            continue
        earlier: list[str] = []
        for step in problem["sub_steps"][:4]:
            given = step["step_number"], problem["required_dependencies"], earlier, step["test_cases"]
            code = step["ground_truth_code"]
            marks.append(grader.grade(f"```python\n{code}\n```", *given).mark)
            earlier.append(code)
        wrong = grader.grade(f"```python\n{step['function_header']}\n    return 7.5\n```", *given)
        assert (wrong.mark, wrong.cause) == (Mark.WRONG, Cause.ANSWER)
    assert marks == [Mark.RIGHT] * 7
