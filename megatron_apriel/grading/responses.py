"""The final response of an answer: the only part of it that a scorer sees.

The trained format opens with reasoning, in which boxes, letters and code stand that are no answer::

    Here are my reasoning steps: maybe \\boxed{7}. [BEGIN FINAL RESPONSE] It is \\boxed{8}. [END FINAL RESPONSE]

Other models put their reasoning between tags, which a server without a parser for them leaves in the text; what stands
behind the last one counts.

An answer that reached the most tokens allowed is truncated, also where its final response had begun: what is missing
could have taken back what is there.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_apriel.data.raw.turns.chat_markers import (
    END_OF_TURN,
    REASONING_OPENING,
    RESPONSE_CLOSING,
    RESPONSE_OPENING,
)
from megatron_apriel.data.raw.turns.reasoning import behind_reasoning
from megatron_apriel.generate.answer import Answer, FinishReason, Part
from megatron_apriel.generate.parsing import parse_answer
from megatron_apriel.grading.verdict import Cause, Mark, Verdict

_WITHHELD = {FinishReason.FILTERED: "the server withheld it", FinishReason.INTERRUPTED: "it was interrupted"}
"""Ends of an answer that is none, with the reasons."""


def final_response(answer: Answer) -> str | Verdict:
    """The text to score, or the verdict on an answer that has none."""
    if answer.finish is FinishReason.LENGTH:
        where = "its final response" if answer.content else "its reasoning"
        return Verdict(Mark.NONE, f"it reached the most tokens allowed, in {where}", Cause.TRUNCATED)
    if reason := withheld(answer):
        return Verdict(Mark.NONE, reason, Cause.FAILED)
    response = behind_reasoning(answer.content)
    if not response.strip():
        reasons = answer.reasoning or answer.content.strip()
        said = "calls of tools alone" if answer.calls else "its reasoning alone" if reasons else "nothing"
        return Verdict(Mark.NONE, f"it has no final response: {said}", Cause.NO_ANSWER)
    return response


def withheld(answer: Answer) -> str:
    """Why an answer is none, although the server gave something; empty where it is one."""
    reason = _WITHHELD.get(answer.finish, "")
    return f"{reason}: {answer.problem}" if reason and answer.problem else reason


def answer_of_text(text: str, finish: FinishReason = FinishReason.STOP) -> Answer:
    """The answer in a text that a model wrote and somebody stored, in the trained format or in none."""
    marks = (RESPONSE_OPENING, RESPONSE_CLOSING)
    is_trained = text.lstrip().startswith(REASONING_OPENING) or any(mark in text for mark in marks)
    begins = Part.REASONING if is_trained else Part.CONTENT
    return replace(parse_answer(text.replace(END_OF_TURN, "") if is_trained else text, begins), finish=finish)
