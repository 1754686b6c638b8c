"""Whether a mathematical answer equals the gold one: as text, as a whole number, else by math-verify.

math-verify 0.9.0 joins neighbouring boxes, is not symmetric in gold and answer, wants the main thread for its alarm,
and does about 14 verifications a second. So the last box alone is handed over, the gold first, in a process of its own,
and only what text and whole numbers do not settle.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from megatron_apriel.grading import math_process
from megatron_apriel.grading.boxed import final_answer, is_balanced
from megatron_apriel.grading.line_process import BrokenProcessError, LineProcess, OutOfTimeError
from megatron_apriel.grading.numbers import whole_number
from megatron_apriel.grading.spelling import plain_spelling
from megatron_apriel.grading.verdict import Cause, Mark, Verdict, bad_item, compared, without_answer

SECONDS = 15.0
"""That math-verify may take for one pair: it gives up by itself after 5 s each for gold, answer and comparing."""
MOST_LETTERS = 2_000
"""Of an answer; a longer one is no expression that anybody wrote down as a result."""


class MathGrader:
    """Compares mathematical answers; a context manager, because it keeps a process.

    Args:
        seconds: that one comparison may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.version = f"math-verify {version('math-verify')}"
        self._process = LineProcess([sys.executable, "-P", str(Path(math_process.__file__))], seconds)

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def grade(self, response: str, gold: str) -> Verdict:
        """Compare the last box of a response with the gold answer.

        A gold answer that cannot be read is an error of the data; an answer that cannot be read is none.
        """
        found = final_answer(response)
        if found is None:
            return without_answer("there is no box that is closed, and no line that says the answer")
        if len(found) > MOST_LETTERS:
            return without_answer(f"the answer has {len(found):,} letters, more than {MOST_LETTERS:,}")
        if _same_text(found, gold):
            return compared(True, found, gold)
        ours, theirs = whole_number(plain_spelling(found)), whole_number(plain_spelling(gold))
        if ours is not None and theirs is not None:
            return compared(ours == theirs, found, gold)
        return self._by_math_verify(found, gold)

    def _by_math_verify(self, found: str, gold: str) -> Verdict:
        if not is_balanced(gold):
            return bad_item(f"the braces of the gold answer {gold} are not closed")
        try:
            said = self._process.ask({"gold": plain_spelling(gold), "answer": plain_spelling(found)})
        except OutOfTimeError as error:
            return Verdict(Mark.NONE, f"comparing {found} with {gold}: {error}", Cause.SLOW, found)
        except BrokenProcessError as error:
            return Verdict(Mark.NONE, f"comparing {found} with {gold}: {error}", Cause.CHECK, found)
        match said["result"]:
            case "bad gold":
                return bad_item(f"math-verify cannot read the gold answer {gold}")
            case "no answer":
                return without_answer(f"math-verify cannot read {found}")
            case "slow":
                return Verdict(Mark.NONE, f"math-verify gave up on {found}", Cause.SLOW, found)
            case result:
                return compared(result == "equal", found, gold)


def _same_text(first: str, second: str) -> bool:
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    """Without what changes nothing: white space and dollars."""
    return "".join(text.replace("$", "").split())
