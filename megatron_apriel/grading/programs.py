"""Whether a program passes its tests: the last block of code in a response, run in the sandbox.

Outputs are compared as LiveCodeBench does: line by line without white space around them, or as decimal numbers where
both lines are such. A program that is too slow on a test gets a verdict of its own, since a busy machine makes a right
one slow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from megatron_apriel.errors import brief
from megatron_apriel.grading import program_driver
from megatron_apriel.grading.sandbox import VERSION, Sandbox
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, bad_item, without_answer
from megatron_apriel.grading.watching import End, Limits

SECONDS = 6.0
"""For each test, as LiveCodeBench allows."""
_LIMITS = Limits(memory_bytes=4 * 2**30, output_bytes=64 * 2**20)
_FENCE = "```"


def last_code_block(text: str) -> str | None:
    """What stands between the last two lines with three backticks; None if there are none, or nothing between them."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return None
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) or None


def grade_program(
    response: str, inputs: Sequence[str], outputs: Sequence[str], function: str, sandbox: Sandbox
) -> Verdict:
    """Run the program of a response on tests.

    Args:
        response: the final response.
        inputs: of the tests; for a function one argument a line, as JSON.
        outputs: that are right; of a function as JSON.
        function: to call, of the class ``Solution`` or alone; empty for a program that reads and writes.
        sandbox: that it runs in.
    """
    if not inputs or len(inputs) != len(outputs):
        return bad_item(f"there are {len(inputs)} inputs and {len(outputs)} outputs")
    program = last_code_block(response)
    if program is None:
        return without_answer("there is no block of code")
    request = {"program": program, "inputs": list(inputs), "function": function, "seconds": SECONDS}
    limits = replace(_LIMITS, seconds=10.0 + SECONDS * len(inputs))
    driver = Path(program_driver.__file__).read_text(encoding="utf-8")
    run = replace(sandbox, limits=limits).run_python(driver, json.dumps(request))
    parts = {"tests": len(inputs), "sandbox": f"{run.level}, version {VERSION}", "seconds": round(run.seconds, 2)}
    if run.end is End.TIME:
        return Verdict(Mark.NONE, "it took too long for all tests together", Cause.SLOW, parts=parts)
    if not run.succeeded:
        return Verdict(
            Mark.WRONG, f"ended for its {run.end}" if run.code is None else "it ended its tests", parts=parts
        )
    results = json.loads(run.output)
    for number, (result, right) in enumerate(zip(results, outputs, strict=False), 1):
        if result.get("problem") == "time":
            return Verdict(Mark.NONE, f"test {number} took more than {SECONDS:g} s", Cause.SLOW, parts=parts)
        if "problem" in result:
            return Verdict(Mark.WRONG, f"test {number}: {brief(result['problem'], 200)}", parts=parts)
        same = _same_value(result["output"], right) if function else same_output(result["output"], right)
        if not same:
            wrote = brief(result["output"].strip(), 60)
            return Verdict(Mark.WRONG, f"test {number}: it gives {wrote}, not {brief(right.strip(), 60)}", parts=parts)
    return Verdict(Mark.RIGHT, f"{len(outputs)} tests passed", parts=parts)


def _same_value(output: str, right: str) -> bool:
    """Whether a function's result, on the last line, is the right JSON value."""
    try:
        found: Any = json.loads(output.rstrip("\n").rpartition("\n")[2])
        return bool(found == json.loads(right))
    except ValueError:
        return False


def same_output(output: str, right: str) -> bool:
    """Whether two outputs have the same lines, or lines of the same numbers."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (output, right))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        first, second = ([Decimal(word) for word in line.split()] for line in (ours, theirs))
        return first == second
    except InvalidOperation:  # no number; or one that signals, "sNaN"
        return False
