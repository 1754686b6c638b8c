"""Tool calls read while a model still writes them: the name once it is known, the arguments as they come.

An answer's calls are a JSON list, ``[{"name": "weather", "arguments": {"city": "Oslo"}}]``. A client that is shown an
answer as it is written wants the name first and then the text of the arguments bit by bit. So the list is read letter
by letter: only so much of JSON is known here as says where a value begins and ends. Whether the values are valid is
seen when all of it is there (:func:`~megatron_apriel.generate.parsing.calls_of`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, auto

_SPACE = " \t\n\r"
_OPENING, _CLOSING = "{[", "}]"


@dataclass
class WrittenCall:
    """A call, whole or as far as it is written.

    Attributes:
        name: of the tool.
        parts: of the JSON text of its arguments, as they came.
    """

    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """JSON text of an object, letter for letter as the model writes it."""
        return "".join(self.parts)


class _Expected(Enum):
    """What may come next outside of values; white space may always."""

    LIST = auto()
    FIRST_CALL = auto()
    CALL = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT_KEY = auto()
    NEXT_CALL = auto()
    NOTHING = auto()


_STEPS: dict[_Expected, dict[str, _Expected]] = {
    _Expected.LIST: {"[": _Expected.FIRST_CALL},
    _Expected.FIRST_CALL: {"{": _Expected.FIRST_KEY, "]": _Expected.NOTHING},
    _Expected.CALL: {"{": _Expected.FIRST_KEY},
    _Expected.FIRST_KEY: {'"': _Expected.COLON, "}": _Expected.NEXT_CALL},
    _Expected.KEY: {'"': _Expected.COLON},
    _Expected.COLON: {":": _Expected.VALUE},
    _Expected.NEXT_KEY: {",": _Expected.KEY, "}": _Expected.NEXT_CALL},
    _Expected.NEXT_CALL: {",": _Expected.CALL, "]": _Expected.NOTHING},
    _Expected.NOTHING: {},
}


class CallReader:
    """Reads one list of calls.

    Attributes:
        calls: whose names are known and whose arguments began, in their order. They grow, and are never taken back.
        problem: why the list cannot be read any further, in a few words; empty if it can.
    """

    def __init__(self) -> None:
        self.calls: list[WrittenCall] = []
        self.problem = ""
        self._expected = _Expected.LIST
        self._call = WrittenCall()
        self._keys: set[str] = set()
        self._key: str | None = None
        """Of the value that is read; None while a key is."""
        self._parts: list[str] = []
        self._in_value = self._in_string = self._escaped = False
        self._depth = 0

    @property
    def is_whole(self) -> bool:
        """Whether the list came to its end."""
        return self._expected is _Expected.NOTHING and not self.problem

    def feed(self, text: str) -> None:
        """Read more of it."""
        start = place = 0
        while place < len(text) and not self.problem:
            letter = text[place]
            if self._in_value:
                end = self._end(letter)
                if end is not None:
                    self._parts.append(text[start : place + end])
                    self._in_value = False
                    self._take()
                    if not end:
                        continue  # The letter behind a number belongs to what comes next.
            elif letter not in _SPACE:
                self._step(letter)
                start = place
            place += 1
        if self._in_value and not self.problem and start < len(text):
            self._parts.append(text[start:])
            self._announce()

    def _step(self, letter: str) -> None:
        """One letter outside of values."""
        if self._expected is _Expected.VALUE or (letter == '"' and '"' in _STEPS[self._expected]):
            if self._expected is not _Expected.VALUE:
                self._key = None
            self._in_value = True
            self._in_string, self._escaped = letter == '"', False
            self._depth = int(letter in _OPENING)
            self._parts = self._call.parts if self._key == "arguments" else []
            return
        following = _STEPS[self._expected].get(letter)
        if following is None:
            self.problem = f"a {letter!r} stands where none may"
            return
        if letter == "{":
            self._call, self._keys = WrittenCall(), set()
        elif letter == "}":
            self._close()
        self._expected = following

    def _end(self, letter: str) -> int | None:
        """Whether a value ends: 1 behind this letter, 0 before it, None if it goes on."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self._in_string = False
                return None if self._depth else 1
            return None
        if letter == '"':
            self._in_string = True
        elif letter in _OPENING:
            self._depth += 1
        elif self._depth:
            self._depth -= letter in _CLOSING
            return None if self._depth else 1
        elif letter in _SPACE or letter in ",}]":
            return 0
        return None

    def _take(self) -> None:
        """What was read is a key, a name, arguments, or something else that a call may hold."""
        if self._key is None:
            self._key = self._read_text()
            if self._key in self._keys:
                self.problem = f"a call says {self._key!r} twice"
            self._keys.add(self._key)
            self._expected = _Expected.COLON
            return
        if self._key == "name":
            self._call.name = self._read_text()
            self.problem = self.problem or ("" if self._call.name else "a call names no tool")
        self._expected = _Expected.NEXT_KEY
        self._announce()

    def _read_text(self) -> str:
        try:
            text = json.loads("".join(self._parts))
            text.encode("utf-8")
        except (ValueError, RecursionError, AttributeError):
            self.problem = "a name or key is no text"
            return ""
        return text

    def _announce(self) -> None:
        """Let the call be seen, if it can be told that it is one."""
        seen = self.calls and self.calls[-1] is self._call
        parts = self._call.parts
        if not seen and not self.problem and self._call.name and parts and parts[0].startswith("{"):
            self.calls.append(self._call)

    def _close(self) -> None:
        """The end of a call; one without arguments has an empty object of them."""
        if "arguments" not in self._keys:
            self._call.parts.append("{}")
        self._announce()
        if not self.calls or self.calls[-1] is not self._call:
            self.problem = self.problem or "a call has no name, or arguments that are no object"
