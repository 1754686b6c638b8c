"""Chunks of raw records: what the reading process hands to the workers, unparsed.

A chunk says where each of its records stands in its file, so that a problem can be reported with its place. Parsing
happens where :meth:`Chunk.records` is called, in a worker. A record that cannot be parsed is that record's problem.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.problems import BadRecord
from megatron_apriel.data.records import IMAGE_FIELDS

MAX_RECORD_BYTES = 256 * 2**20
"""A longer line is a bad record: most likely a file without line ends."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class RawRecord:
    """A parsed record, or the reason why there is none.

    Attributes:
        place: file with line, row or sample.
        value: the record.
        problem: why ``value`` is missing.
        attachments: images that came beside the record, by name.
    """

    place: str
    value: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    attachments: dict[str, bytes] = field(default_factory=dict)


class Chunk(ABC):
    """Consecutive records of one file, not parsed yet; travels to a worker."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def head(self, count: int) -> Chunk:
        """The first ``count`` records of the chunk."""

    @abstractmethod
    def records(self) -> Iterator[RawRecord]:
        """Parse the records."""


@dataclass(frozen=True)
class JsonChunk(Chunk):
    """JSON texts with their numbers: lines, or elements of an array; a text of None was too long to be read.

    ``place`` stands before the number: ``a.jsonl:`` or ``a.json: record ``.
    """

    place: str
    texts: list[tuple[int, bytes | None]]

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> JsonChunk:
        return JsonChunk(self.place, self.texts[:count])

    def records(self) -> Iterator[RawRecord]:
        for number, text in self.texts:
            place = f"{self.place}{number}"
            if text is None:
                yield RawRecord(place, problem=f"the line is longer than {MAX_RECORD_BYTES} bytes")
                continue
            try:
                yield RawRecord(place, parse_json_object(text))
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))


@dataclass(frozen=True)
class TableChunk(Chunk):
    """Rows of an Arrow table, beginning with row number ``first`` of their file."""

    file: str
    first: int
    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    def head(self, count: int) -> TableChunk:
        return TableChunk(self.file, self.first, self.table.slice(0, count))

    def records(self) -> Iterator[RawRecord]:
        for index in range(len(self)):
            place = f"{self.file}: row {self.first + index}"
            try:
                yield RawRecord(place, self.table.slice(index, 1).to_pylist()[0])
            except UnicodeDecodeError as error:
                yield RawRecord(place, problem=f"a string is not valid UTF-8: {error}")
            except (ValueError, OverflowError) as error:  # of dates beyond Python's
                yield RawRecord(place, problem=f"a value cannot be read: {error}")


@dataclass(frozen=True)
class SampleChunk(Chunk):
    """Samples of a tar: a key, and its members' names and bytes."""

    file: str
    samples: list[tuple[str, dict[str, bytes]]]

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, count: int) -> SampleChunk:
        return SampleChunk(self.file, self.samples[:count])

    def records(self) -> Iterator[RawRecord]:
        for key, members in self.samples:
            place = f"{self.file}: sample {key}"
            images = {name: data for name, data in members.items() if name.lower().endswith(IMAGE_SUFFIXES)}
            documents = [data for name, data in members.items() if name.lower().endswith(".json")]
            captions = [data for name, data in members.items() if name.lower().endswith(".txt")]
            try:
                if documents:
                    value = parse_json_object(documents[0])
                elif captions:
                    value = {"text": "<image>\n" * len(images) + captions[0].decode("utf-8")}
                else:
                    raise BadRecord(f"no .json and no .txt among {', '.join(members)}")
                if images and not any(value.get(name) for name in IMAGE_FIELDS):
                    value["images"] = list(images.values())
                yield RawRecord(place, value, attachments=images)
            except UnicodeDecodeError as error:
                yield RawRecord(place, problem=f"the .txt is not valid UTF-8: {error}")
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))


def parse_json_object(line: bytes) -> dict[str, Any]:
    """One JSON object. Raises BadRecord with the reason."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord(f"not valid UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRecord(f"a JSON {type(value).__name__}, not an object")
    return value
