"""SciCode: whether the code of a step, behind that of the steps before it, gives the numbers that its authors got.

As ``scicode`` of nvidia-scicode 26.3 has it in the form of Artificial Analysis (``SciCode_AA_v2``): the first block of
Python in a response, its import lines taken out; before it what the problem allows to import and the code of earlier
steps; behind it the step's tests, which compare with ``test_data.h5``. It runs in the sandbox, with an interpreter of
an environment of its own, because solutions and tests are of the time of NumPy 1 and SciPy 1.13. The right numbers
stand beside the program there, since the tests compare within it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_apriel.errors import brief
from megatron_apriel.grading.sandbox import Sandbox
from megatron_apriel.grading.scorer_environments import scorer_python
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, without_answer
from megatron_apriel.grading.watching import End, Limits

VERSION = "nvidia-scicode 26.3"
TARGETS = "test_data.h5"
SECONDS = 300.0
"""For all tests of a step, as evalscope 1.14.1 allows; nvidia-scicode waits for half an hour."""
_OPENING, _CLOSING = "```python\n", "\n```"
_SCRIPT = """\
import os as _os, sys as _sys
_os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
try:
    from scicode.parse.parse import process_hdf5_to_tuple
    _targets = process_hdf5_to_tuple({step!r}, {count}, {targets!r})
except Exception as _error:
    _sys.exit(f"{mark}: {{_error}}")
{code}
targets = _targets
{tests}
_sys.stdout.write("\\n{mark}\\n")
"""


def python_block(response: str) -> str | None:
    """The first block of Python without its lines of imports; None where there is none.

    The harness looks for ``(?<=```python\\n)((?:\\n|.)+?)(?=\\n```)``.
    """
    start = response.find(_OPENING)
    if start < 0:
        return None
    start += len(_OPENING)
    end = response.find(_CLOSING, start + 1)
    if end < 0:
        return None
    return "\n".join("" if _is_import(line) else line for line in response[start:end].split("\n"))


def _is_import(line: str) -> bool:
    """Whether a line is ``import ...`` or ``from ... import ...``; of one over several lines only the first is."""
    words = line.split()
    return bool(words) and (line.lstrip().startswith("import ") or (words[0] == "from" and "import" in words[2:]))


class StepGrader:
    """Runs the code of steps on their tests.

    Args:
        targets: the right numbers, ``test_data.h5``.
        sandbox: that programs run in.

    Raises:
        ConfigError: the environment of its own is not there.
    """

    version = VERSION

    def __init__(self, targets: Path, sandbox: Sandbox) -> None:
        python = scorer_python("scicode")
        self._targets = targets.resolve()
        self._sandbox = replace(
            sandbox, interpreter=python, readable=(python.parents[1], self._targets),
            limits=Limits(seconds=SECONDS, memory_bytes=8 * 2**30, output_bytes=2**20),
        )  # fmt: skip

    def grade(
        self, response: str, step: str, dependencies: str, earlier: Iterable[str], tests: Sequence[str]
    ) -> Verdict:
        """The verdict on a step.

        Args:
            response: the final response.
            step: its number, as ``13.2``.
            dependencies: what the problem allows to import.
            earlier: code of the steps before it.
            tests: of it, each with ``target`` in it.
        """
        code = python_block(response)
        if code is None:
            return without_answer("there is no block of Python")
        mark = secrets.token_hex(8)
        program = _SCRIPT.format(
            step=step, count=len(tests), targets=str(self._targets), mark=mark,
            code="\n".join([dependencies, *earlier, "", code]),
            tests="\n".join(f"target = targets[{number}]\n\n{test}" for number, test in enumerate(tests)),
        )  # fmt: skip
        run = self._sandbox.run_python(program)
        parts = {"tests": len(tests), "sandbox": str(run.level), "seconds": round(run.seconds, 2)}
        if run.end is End.TIME:
            return Verdict(Mark.NONE, f"it took more than {SECONDS:g} s", Cause.SLOW, parts=parts)
        words = brief((run.errors.strip().splitlines() or [f"exit code {run.code}"])[-1], 200)
        if words.startswith(mark):
            return Verdict(Mark.NONE, f"{TARGETS} cannot be used: {words.removeprefix(f'{mark}: ')}", Cause.CHECK)
        if run.end is not End.BY_ITSELF:
            return Verdict(Mark.WRONG, f"ended for its {run.end}", parts=parts)
        if run.code:
            return Verdict(Mark.WRONG, words, parts=parts)
        if run.output.rstrip("\n").rpartition("\n")[2] != mark:
            return Verdict(Mark.WRONG, "it ended before its tests", parts=parts)
        return Verdict(Mark.RIGHT, f"{len(tests)} tests passed", parts=parts)
