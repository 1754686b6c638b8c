"""What a model answers, whole or as it comes, and the interface of everything that answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from megatron_apriel.generate.conversation import Question, ToolCall, Turn


class Part(StrEnum):
    """What a piece of an answer belongs to."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALLS = "calls"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it."""
    CALLS = "tool_calls"
    """The model ended it and waits for results."""
    LENGTH = "length"
    """It reached the most tokens that were allowed, or that the model can read."""
    FILTERED = "content_filter"
    """The server withheld the rest."""
    INTERRUPTED = "interrupted"
    """Whoever asked stopped it."""


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer. The pieces of a part, joined, are that part of the whole answer.

    Those of ``CALLS`` are the JSON text of the calls as it comes; they can be read when the answer is whole.
    """

    part: Part
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer, without the markers of the chat format.

    Attributes:
        reasoning, content: without white space around them.
        calls: of tools.
        finish: why it ended.
        prompt_tokens, tokens: of the question and of the answer, reasoning included; None where a server did not say.
        problem: what is wrong with its form, in one sentence; empty if nothing is.
    """

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: FinishReason = FinishReason.INTERRUPTED
    prompt_tokens: int | None = None
    tokens: int | None = None
    problem: str = ""

    @property
    def text(self) -> str:
        """Its parts one under another, for comparison with another answer."""
        calls = [f"{call.name}({json.dumps(call.values(), ensure_ascii=False)})" for call in self.calls]
        return "\n".join(filter(None, (self.reasoning, self.content, *calls)))

    @property
    def turn(self) -> Turn:
        """The answer as a turn of the conversation that goes on; its reasoning is not shown again."""
        return Turn("assistant", (self.content,) if self.content else (), self.calls)


class AnswerStream:
    """An answer as it comes: iterate over its pieces; :attr:`answer` is what there is of it so far.

    Closing it, or leaving its ``with`` block, stops the model where it has not ended.
    """

    def __init__(self, pieces: Generator[Piece, None, Answer]) -> None:
        """Args: ``pieces`` gives the pieces and returns the answer, whose texts it may know better."""
        self._pieces = pieces
        self._texts = dict.fromkeys(Part, "")
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[Piece]:
        while self._answer is None:
            try:
                piece = next(self._pieces)
            except StopIteration as end:
                self._answer = end.value
                return
            self._texts[piece.part] += piece.text
            yield piece

    @property
    def answer(self) -> Answer:
        """Whole where it ended, else what came of it, marked as interrupted."""
        if self._answer is not None:
            return self._answer
        return Answer(self._texts[Part.REASONING].strip(), self._texts[Part.CONTENT].strip())

    def close(self) -> None:
        """Stop it."""
        self._pieces.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Model(ABC):
    """Whatever answers.

    Attributes:
        name: for a person to read.
    """

    name: str

    @abstractmethod
    def stream(self, question: Question) -> AnswerStream:
        """Begin an answer.

        Raises, here or while it is read:
            DataError: the question cannot be asked of this model.
            ServerError: of a server.
        """

    def answer(self, question: Question) -> Answer:
        """A whole answer. Raises as :meth:`stream` does."""
        with self.stream(question) as stream:
            for _ in stream:
                pass
            return stream.answer

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def finished(answer: Answer, reason: FinishReason) -> Answer:
    """The answer with the reason of its end: one that holds calls waits for their results."""
    waits = reason is FinishReason.STOP and bool(answer.calls)
    return replace(answer, finish=FinishReason.CALLS if waits else reason)
