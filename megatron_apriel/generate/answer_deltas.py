"""An answer in the trained format as a server sends it on: what is new of reasoning, content and calls in each step.

Servers divide an answer in two steps, each with a parser of its own: one takes the reasoning off, the other divides the
rest into content and calls. Both of these stand here, without any server; ``vllm_plugin.py`` puts vLLM's interfaces
around them. How text is divided is known to :mod:`~megatron_apriel.generate.parsing` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_OPENING
from megatron_apriel.generate.answer import Part, Piece
from megatron_apriel.generate.parsing import AnswerParser


@dataclass(frozen=True)
class CallDelta:
    """What is new of one call.

    Attributes:
        number: which of the answer's calls, from 0.
        name: of the tool; empty where it was sent before.
        arguments: some more of their JSON text.
    """

    number: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """What is new of a final response: content, then calls."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class ReasoningStream:
    """Takes the reasoning off an answer.

    Attributes:
        ended: whether the final response began.
    """

    def __init__(self) -> None:
        self._parser = AnswerParser(Part.REASONING)
        self._texts: list[str] = []
        self.ended = False
        self._rest = ""

    def feed(self, text: str) -> str:
        """Take more of the text, and give what is new of the reasoning."""
        if self.ended:
            self._rest += text
            return ""
        self._texts.append(text)
        reasoning = _joined(self._parser.feed(text), Part.REASONING)
        if self._parser.answering:
            self.ended = True
            self._rest = "".join(self._texts).partition(RESPONSE_OPENING)[2]
        return reasoning

    def rest(self) -> str:
        """Text of the final response that was not given yet, as the model wrote it."""
        rest, self._rest = self._rest, ""
        return rest

    def finish(self) -> str:
        """The reasoning that was held back, because no more text will come."""
        return "" if self.ended else _joined(self._parser.finish(), Part.REASONING)


class ResponseStream:
    """Divides a final response, which begins behind its opening.

    Args:
        reads_calls: whether calls are looked for; if not, they stay in the content as they were written.
    """

    def __init__(self, *, reads_calls: bool = True) -> None:
        self._parser = AnswerParser(Part.CONTENT, reads_calls=reads_calls, opened=True)
        self._sent: list[int] = []
        """How many parts of each call's arguments were given."""

    def feed(self, text: str) -> Delta:
        """Take more of the text, and give what is new."""
        return self._delta(self._parser.feed(text))

    def finish(self) -> Delta:
        """What was held back, because no more text will come. Calls that cannot be read are content after all."""
        delta = self._delta(self._parser.finish())
        content = self._parser.texts[Part.CONTENT]
        unread = "\n".join(filter(None, (content, *self._parser.unread))).removeprefix(content)
        return Delta(delta.content + unread, delta.calls)

    def _delta(self, pieces: list[Piece]) -> Delta:
        calls = []
        for number, call in enumerate(self._parser.written_calls):
            begins = number >= len(self._sent)
            if begins:
                self._sent.append(0)
            arguments = "".join(call.parts[self._sent[number] :])
            self._sent[number] = len(call.parts)
            if begins or arguments:
                calls.append(CallDelta(number, call.name if begins else "", arguments))
        return Delta(_joined(pieces, Part.CONTENT), tuple(calls))


def _joined(pieces: list[Piece], part: Part) -> str:
    return "".join(piece.text for piece in pieces if piece.part is part)
