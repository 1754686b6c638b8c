"""What a model is asked: turns of text and pictures, the tools it may call, and how its answer is chosen."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_apriel.data.corpus.stored_images import encode_for_corpus
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS
from megatron_apriel.errors import DataError, brief, printable
from megatron_apriel.inputs import read_input

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Picture:
    """An image as models were trained on it: upright, without transparency.

    Attributes:
        data: bytes of a JPEG or PNG that every decoder turns into the same pixels.
        height, width: of it.
    """

    data: bytes = field(repr=False)
    height: int
    width: int

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the image") -> Picture:
        """From an image file's bytes. Raises DataError, which calls it ``what``, if it cannot be used."""
        try:
            encoded = encode_for_corpus(data)
        except BadRecord as error:
            raise DataError(
                f"{what} cannot be used: {error}.", fix="Give a JPEG, PNG, WEBP, GIF, TIFF or BMP."
            ) from None
        return cls(encoded.data, encoded.height, encoded.width)

    @classmethod
    def from_file(cls, file: str | Path) -> Picture:
        """From an image file. Raises DataError if it cannot be read or used."""
        try:
            data = read_input(file, DEFAULT_LIMITS.record_bytes)
        except OSError as error:
            raise DataError(f"{printable(file)} cannot be read: {error.strerror}.") from None
        return cls.from_bytes(data, printable(file))

    @property
    def url(self) -> str:
        """The picture as a ``data:`` address."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class ToolCall:
    """A call that a model makes.

    Attributes:
        name: of the tool.
        arguments: JSON text of an object.
        id: identifies the call that a result belongs to; servers give one.
    """

    name: str
    arguments: str
    id: str = ""

    def values(self) -> Any:
        """The arguments as an object; the text itself where it is no JSON."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: who speaks; ``tool`` gives a call's result.
        content: texts and pictures in their order.
        calls: of an assistant.
        result_of: id of the call that a tool's turn answers.
    """

    role: Role
    content: tuple[str | Picture, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    result_of: str = ""

    def __post_init__(self) -> None:
        """Raises DataError for halves of surrogate pairs, which no tokenizer and no request can carry."""
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{brief(self.text)} is not text: it has bytes that are not UTF-8.", fix="Write it in UTF-8."
            ) from None

    @property
    def text(self) -> str:
        """Its text alone."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its pictures alone."""
        return tuple(part for part in self.content if isinstance(part, Picture))


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen. None leaves it to the model's generation config, or to the server.

    Attributes:
        greedy: always the likeliest token.
        max_tokens: of the answer, reasoning included.
        temperature, top_p: of sampling.
        seed: the same one gives the same answer again, as far as the server promises it.
    """

    greedy: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Question:
    """All that a model is asked.

    Attributes:
        turns: the conversation so far; the model answers the last one.
        tools: JSON schemas of the tools that it may call.
        sampling: how the answer is chosen.
    """

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    sampling: Sampling = Sampling()
