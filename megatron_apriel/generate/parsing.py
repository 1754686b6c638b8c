"""An answer in the trained format, divided into reasoning, final content and tool calls while it is being written.

The prompt ends with the words that open the reasoning, so an answer reads::

    Two and two.
    [BEGIN FINAL RESPONSE]
    Let me look.
    <tool_calls>[{"name": "weather", "arguments": {"city": "Oslo"}}]</tool_calls>
    [END FINAL RESPONSE]
    <|end|>

The markers are plain text of several tokens, and text arrives cut anywhere. What may be the beginning of a marker is
held back until it is one or is not; so is white space, which belongs to a part only if more of the part follows. What
was given out is never taken back, and joined it is what the whole text gives at once. Where an answer is cut off within
a marker, as ``[END FINAL RE``, what is there of the marker is nobody's text and is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from megatron_apriel.data.raw.turns.chat_markers import (
    CALLS_CLOSING,
    CALLS_OPENING,
    REASONING_OPENING,
    RESPONSE_CLOSING,
    RESPONSE_OPENING,
)
from megatron_apriel.errors import brief
from megatron_apriel.generate.answer import Answer, Part, Piece
from megatron_apriel.generate.call_reader import CallReader, WrittenCall
from megatron_apriel.generate.conversation import ToolCall

_NEXT: dict[Part, dict[str, Part | None]] = {
    Part.REASONING: {RESPONSE_OPENING: Part.CONTENT, RESPONSE_CLOSING: None},
    Part.CONTENT: {CALLS_OPENING: Part.CALLS, RESPONSE_CLOSING: None},
    Part.CALLS: {CALLS_CLOSING: Part.CONTENT, RESPONSE_CLOSING: None},
}
"""The marker that ends each part, and what comes behind it; None where the answer is over."""
_NEXT_WITHOUT_CALLS = _NEXT | {Part.CONTENT: {RESPONSE_CLOSING: None}}
_LONGEST_MARKER = max(len(marker) for markers in _NEXT.values() for marker in markers)
_CUT_MARKER = len("[END")
"""So much of a marker, at the end of all text, is a marker that was cut off; a bracket alone is text."""
_FIRST = {Part.REASONING: REASONING_OPENING, Part.CONTENT: RESPONSE_OPENING}
"""What a part may be opened with again, at its very beginning: some servers send the prompt's last words too."""


class AnswerParser:
    """Divides an answer that arrives in pieces.

    Args:
        begins: the part that the text begins in: the reasoning, or the content where a server has taken the reasoning
            out or the format has none.
        reads_calls: whether calls are looked for; if not, they stay in the content as they were written.
        opened: whether the words that open the first part were read already; if not, the text may repeat them.
    """

    def __init__(self, begins: Part = Part.REASONING, *, reads_calls: bool = True, opened: bool = False) -> None:
        self.begins = begins
        self._next = _NEXT if reads_calls else _NEXT_WITHOUT_CALLS
        self._markers = {part: re.compile("|".join(map(re.escape, markers))) for part, markers in self._next.items()}
        self.part: Part | None = begins
        """What the text is now in; None behind the end of the answer."""
        self._texts: dict[Part, list[str]] = {part: [] for part in Part}
        self.answering = begins is not Part.REASONING
        """Whether the final response began."""
        self._blocks: list[_Block] = []
        self._begun = opened
        self._held = ""
        self._space = ""
        self._in_string = self._escaped = False

    @property
    def texts(self) -> dict[Part, str]:
        """What belongs to each part so far."""
        return {part: "".join(said) for part, said in self._texts.items()}

    def feed(self, text: str) -> list[Piece]:
        """Take more of the text, and give what is now certain."""
        self._held += text
        return self._pieces(final=False)

    def finish(self) -> list[Piece]:
        """Give what was held back, because no more text will come."""
        return self._pieces(final=True)

    def _pieces(self, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if self.part is not None and self._held and not self._opened(final):
            return pieces
        held, place = self._held, 0
        while self.part is not None and place < len(held):
            marker, end = self._marker(held, place)
            uncertain = 0 if marker else self._uncertain(held[place:end][-_LONGEST_MARKER:])
            end -= uncertain
            pieces += self._said(held[place:end])
            if final and uncertain and (uncertain < _CUT_MARKER or self._in_string):
                pieces += self._said(held[end:])
            place = end + len(marker)
            if not marker:
                break
            self._enter(self._next[self.part][marker])
        self._held = held[place:] if self.part is not None else ""
        return pieces

    def _opened(self, final: bool) -> bool:
        """Drop the opening that the beginning repeats; False while it cannot be known whether it does."""
        start = self._held.lstrip()
        if self._begun or not start:
            return True
        opening = _FIRST[self.begins]
        if start.startswith(opening):
            self._held = start.removeprefix(opening)
        self._begun = final or not (len(start) < len(opening) and opening.startswith(start))
        return self._begun

    def _marker(self, held: str, start: int) -> tuple[str, int]:
        """The first marker from ``start`` on, and its place; no marker, and the end. One pass over what lies between.

        Within a string of a call's arguments there is no marker.
        """
        assert self.part is not None
        if self.part is not Part.CALLS:
            found = self._markers[self.part].search(held, start)
            return (found[0], found.start()) if found else ("", len(held))
        in_string, escaped = self._in_string, self._escaped
        for place in range(start, len(held)):
            if not in_string and (found := self._markers[self.part].match(held, place)):
                return found[0], place
            in_string, escaped = _after(held[place], in_string, escaped)
        return "", len(held)

    def _uncertain(self, held: str) -> int:
        """Length of the longest end of what is held that may begin a marker."""
        assert self.part is not None
        longest = 0
        for marker in self._next[self.part]:
            for length in range(min(len(marker) - 1, len(held)), longest, -1):
                if held.endswith(marker[:length]):
                    longest = length
                    break
        return longest

    def _said(self, text: str) -> Iterable[Piece]:
        assert self.part is not None
        if self.part is Part.CALLS:
            for letter in text:
                self._in_string, self._escaped = _after(letter, self._in_string, self._escaped)
            self._blocks[-1].feed(text)
        else:
            text = self._space + text
            if not self._texts[self.part]:
                text = text.lstrip()
            self._space = text[len(text.rstrip()) :]
            text = text.rstrip()
        if not text:
            return []
        self._texts[self.part].append(text)
        return [Piece(self.part, text)]

    def _enter(self, part: Part | None) -> None:
        self._in_string = self._escaped = False
        self._space = ""
        if part is Part.CALLS:
            self._blocks.append(_Block())
        elif self.part is Part.CALLS:
            self._blocks[-1].closed = part is not None
        self.answering = self.answering or part is not None
        self.part = part

    def answer(self) -> Answer:
        """All that was fed so far, and what is wrong with it.

        Calls that cannot be read stay in the content as they were written.
        """
        calls: list[ToolCall] = []
        texts, problem = self.texts, ""
        content = [texts[Part.CONTENT]] if texts[Part.CONTENT] else []
        for block in self._blocks:
            try:
                calls += calls_of(block.text)
            except ValueError as error:
                problem = f"the tool calls cannot be read: {error}"
                content.append(self._marked(block))
            if self._is_open(block):
                problem = f"the tool calls have no {CALLS_CLOSING}"
        if not self.answering:
            problem = f"there is no {RESPONSE_OPENING}: the answer ends in its reasoning"
        return Answer(texts[Part.REASONING], "\n".join(content), tuple(calls), problem=problem)

    @property
    def written_calls(self) -> list[WrittenCall]:
        """The calls so far. Each grows, and none is taken back, although :meth:`answer` may find it unreadable."""
        return [call for block in self._blocks for call in block.reader.calls]

    @property
    def unread(self) -> list[str]:
        """Calls of which nothing can be read, as they were written; for the end of the text."""
        return [self._marked(block) for block in self._blocks if not (block.reader.is_whole or block.reader.calls)]

    def _marked(self, block: _Block) -> str:
        return (CALLS_OPENING + block.text + CALLS_CLOSING * block.closed).rstrip()

    def _is_open(self, block: _Block) -> bool:
        return self.part is Part.CALLS and block is self._blocks[-1]


class _Block:
    """What stands between the markers around calls."""

    def __init__(self) -> None:
        self.reader = CallReader()
        self.closed = False
        """Whether the closing marker was written."""
        self._parts: list[str] = []

    def feed(self, text: str) -> None:
        self._parts.append(text)
        self.reader.feed(text)

    @property
    def text(self) -> str:
        return "".join(self._parts)


def _after(letter: str, in_string: bool, escaped: bool) -> tuple[bool, bool]:
    """Whether JSON is in a string, and behind a backslash there, after one more letter.

    No string of JSON goes on over a line's end: what does is no JSON, and must not hide the end of the answer.
    """
    if letter == "\n":
        return False, False
    if escaped:
        return in_string, False
    if letter == "\\":
        return in_string, in_string
    return in_string != (letter == '"'), False


def calls_of(text: str) -> list[ToolCall]:
    """The calls of a JSON list of ``{"name": ..., "arguments": {...}}``. Raises ValueError with the reason.

    Arguments stay letter for letter as they were written.
    """
    try:
        calls = json.loads(text)
    except RecursionError:
        raise ValueError("they are nested too deeply") from None
    if not isinstance(calls, list):
        raise ValueError(f"{brief(text)} is not a list")
    for call in calls:
        _check(call)
    reader = CallReader()
    reader.feed(text)
    if not reader.is_whole:
        raise ValueError(reader.problem)
    return [ToolCall(call.name, call.arguments) for call in reader.calls]


def _check(call: Any) -> None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError(f"{brief(json.dumps(call))} names no tool")
    if not isinstance(call.get("arguments", {}), dict):
        raise ValueError(f"the arguments of {brief(call['name'])} are not an object")


def parse_answer(text: str, begins: Part = Part.REASONING) -> Answer:
    """Divide a whole text; see :class:`AnswerParser`. How it ended is not known from it."""
    parser = AnswerParser(begins)
    parser.feed(text)
    parser.finish()
    return parser.answer()
