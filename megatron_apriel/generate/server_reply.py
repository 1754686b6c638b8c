"""One reply of a server put together from its events, whoever divided it: the server by fields, or the model's text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_OPENING
from megatron_apriel.errors import ServerError, brief
from megatron_apriel.generate.answer import Answer, FinishReason, Part, Piece, finished
from megatron_apriel.generate.conversation import ToolCall
from megatron_apriel.generate.parsing import AnswerParser, parse_answer

_FINISHED = {
    FinishReason.STOP: ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"),
    FinishReason.LENGTH: ("length", "max_tokens", "model_length"),
    FinishReason.CALLS: ("tool_calls", "function_call", "tool_use"),
    FinishReason.FILTERED: ("content_filter", "safety", "recitation"),
    FinishReason.INTERRUPTED: ("abort", "error", "cancelled", "insufficient_system_resource"),
}
"""What servers call them."""
_FINISHED_BY = {word: reason for reason, words in _FINISHED.items() for word in words}


class Reply:
    """Args: ``begins`` is the part that the text begins in where the server does not give the reasoning apart."""

    def __init__(self, begins: Part) -> None:
        self._begins = begins
        self._reasoning = AnswerParser()
        self._content: AnswerParser | None = None
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self.has_reasoning_field = False
        self.finish: FinishReason | None = None
        self.unknown_reason = ""
        """What a server called the end, where nobody knows whether the answer is whole then."""
        self.usage: dict[str, int] = {}

    @property
    def characters(self) -> int:
        """Of the text so far."""
        return sum(map(len, self._text)) + len(self._reasoning.texts[Part.REASONING])

    @property
    def is_marked(self) -> bool:
        """Whether the text is in the trained format, by its marker."""
        return RESPONSE_OPENING in "".join(self._text)

    @property
    def is_plain(self) -> bool | None:
        """Whether the text is in no trained format, now that it is whole; None where that cannot be told."""
        if self.has_reasoning_field:
            return None
        if self.is_marked:
            return False
        return True if self.finish is FinishReason.STOP and self.characters else None

    def pieces(self, event: dict[str, Any]) -> Iterator[Piece]:
        """What an event adds. Raises ServerError if it is none of the protocol."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = {name: count for name, count in usage.items() if _is_count(count)}
        choices = event.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise _unknown(event)
        if not choices:
            return
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or {}
        if not isinstance(said, dict):
            raise _unknown(event)
        if reasoning := _text(said, "reasoning_content") or _text(said, "reasoning"):
            self.has_reasoning_field = True
            yield from self._reasoning.feed(reasoning)
        if content := _text(said, "content"):
            if self._content is None:
                yield from self._reasoning.finish()
                self._content = AnswerParser(Part.CONTENT if self.has_reasoning_field else self._begins)
            self._text.append(content)
            yield from self._content.feed(content)
        self._add_calls(said.get("tool_calls"), event)
        if choice.get("finish_reason"):
            reason = str(choice["finish_reason"])
            self.finish = _FINISHED_BY.get(reason.lower(), FinishReason.INTERRUPTED)
            self.unknown_reason = "" if reason.lower() in _FINISHED_BY else reason

    def rest(self) -> Iterator[Piece]:
        """What was held back, and the calls."""
        yield from (self._content or self._reasoning).finish()
        if self._calls:
            calls = ({"name": call.name, "arguments": call.values()} for call in self._field_calls())
            yield Piece(Part.CALLS, json.dumps(list(calls), ensure_ascii=False))

    def answer(self, begins: Part | None = None) -> Answer:
        """All of it; ``begins`` is the part that the text is now known to have begun in."""
        if self._content is None:
            answer = self._reasoning.answer()
            if self.has_reasoning_field and not self._calls:
                return answer
            answer = replace(answer, problem="" if self._calls else answer.problem)
        elif begins is not None:
            answer = parse_answer("".join(self._text), begins)
        else:
            answer = self._content.answer()
        reasoning = self._reasoning.texts[Part.REASONING] if self.has_reasoning_field else answer.reasoning
        return replace(answer, reasoning=reasoning, calls=(*answer.calls, *self._field_calls()))

    def _field_calls(self) -> list[ToolCall]:
        return [
            ToolCall(call["name"], call["arguments"] or "{}", call["id"]) for _, call in sorted(self._calls.items())
        ]

    def _add_calls(self, given: Any, event: dict[str, Any]) -> None:
        """Calls come in pieces too: a name and an id once, the arguments' text bit by bit."""
        if given is None:
            return
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise _unknown(event)
        for place, one in enumerate(given):
            number = one.get("index")
            call = self._calls.setdefault(
                number if isinstance(number, int) else place, {"id": "", "name": "", "arguments": ""}
            )
            function = one.get("function") if isinstance(one.get("function"), dict) else {}
            call["id"] = call["id"] or _text(one, "id")
            call["name"] += _text(function, "name")
            call["arguments"] += _text(function, "arguments")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def whole_answer(reply: Reply, trained: bool | None = None) -> Answer:
    """The answer of a reply that ended, with its counts.

    Args:
        reply: with the reason of its end.
        trained: whether the model writes in the trained format. None: its text counts as reasoning until the final
            response begins; where it ends without one, it was an answer in another format.
    """
    assert reply.finish is not None
    plain = reply.is_plain if trained is None else None
    answer = reply.answer(None if plain is None else Part.CONTENT if plain else Part.REASONING)
    usage = reply.usage
    counted = replace(answer, prompt_tokens=usage.get("prompt_tokens"), tokens=usage.get("completion_tokens"))
    if reply.unknown_reason:
        counted = replace(
            counted, problem=f"the server ended it for a reason unknown here: {brief(reply.unknown_reason)}"
        )
    return finished(counted, reply.finish)


def _text(fields: Any, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _unknown(event: dict[str, Any]) -> ServerError:
    return ServerError(
        f"the server's answer is not of OpenAI's protocol: {brief(json.dumps(event), 200)}.",
        fix="Give the address that ends in /v1, such as http://localhost:8000/v1.",
    )
