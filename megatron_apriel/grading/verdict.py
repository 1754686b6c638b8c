"""The verdict on an answer: right, wrong or none, with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Mark(StrEnum):
    """Right, wrong, or none: nothing can be said. None is never counted as right, and always counted."""

    RIGHT = "right"
    WRONG = "wrong"
    NONE = "none"


class Cause(StrEnum):
    """What a verdict comes from."""

    ANSWER = "answer"
    """The answer itself: it was found, and compared or tried."""
    NO_ANSWER = "no answer"
    """Nothing in the response can be read as an answer."""
    TRUNCATED = "truncated"
    """It reached the most tokens that were allowed."""
    FAILED = "failed"
    """There is no response: the server failed, or withheld it."""
    SLOW = "slow"
    """The answer or its check took longer than allowed. Tried once more alone, it may get another verdict."""
    DATA = "data"
    """The item cannot be scored, whatever is answered."""
    CHECK = "check"
    """What checks is not to be had, or failed: a package, a judge whose reply cannot be read."""


@dataclass(frozen=True)
class Verdict:
    """A verdict on one answer.

    Attributes:
        mark: right, wrong or none.
        reason: in a few words.
        cause: what it comes from.
        found: the answer that was found in the response.
        parts: verdicts on parts, or by other rules, as JSON.
    """

    mark: Mark
    reason: str
    cause: Cause = Cause.ANSWER
    found: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Whether it counts."""
        return self.mark is Mark.RIGHT


def compared(is_right: bool, found: str, gold: str) -> Verdict:
    """The verdict on an answer that was found and compared with the gold one."""
    if is_right:
        return Verdict(Mark.RIGHT, f"{found} is {gold}" if found != gold else f"it is {gold}", found=found)
    return Verdict(Mark.WRONG, f"{found} is not {gold}", found=found)


def without_answer(reason: str) -> Verdict:
    """The verdict on a response in which nothing can be read as an answer."""
    return Verdict(Mark.NONE, reason, Cause.NO_ANSWER)


def bad_item(reason: str) -> Verdict:
    """The verdict on whatever is answered to an item that cannot be scored."""
    return Verdict(Mark.NONE, reason, Cause.DATA)
