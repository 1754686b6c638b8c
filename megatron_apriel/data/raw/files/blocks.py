"""Blocks of raw records: what the reading process hands to the workers, unparsed.

A block says where each of its records stands in its file, so that a problem can be reported with its place. Parsing
happens where :meth:`Block.records` is called, in a worker. A record that cannot be parsed is that record's problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.files.table_values import json_columns, row_as_json
from megatron_apriel.data.raw.files.tar_records import TarSample, sample_record
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits

NO_MEMORY = "there is not enough memory for it"


@dataclass(frozen=True)
class RawRecord:
    """A parsed record, or the reason why there is none.

    Attributes:
        place: file with line, row or sample.
        value: the record.
        problem: why ``value`` is missing.
        attachments: images that came beside the record, by name.
        unused: what else came beside it and is of no use.
    """

    place: str
    value: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    attachments: dict[str, bytes] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


class Block(ABC):
    """Consecutive records of one file, not parsed yet; travels to a worker."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def head(self, count: int) -> Block:
        """The first ``count`` records of the block."""

    @abstractmethod
    def records(self, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[RawRecord]:
        """Parse the records."""


@dataclass(frozen=True)
class JsonBlock(Block):
    """JSON texts with their numbers: lines, or elements of an array; a text of None was too long to be read.

    ``place`` stands before the number: ``a.jsonl:`` or ``a.json: record ``.
    """

    place: str
    texts: list[tuple[int, bytes | None]]

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> JsonBlock:
        return JsonBlock(self.place, self.texts[:count])

    def records(self, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[RawRecord]:
        for number, text in self.texts:
            place = f"{self.place}{number}"
            if text is None:
                problem = f"the line is longer than {limits.record_bytes:,} bytes; --max-record allows more"
                yield RawRecord(place, problem=problem)
                continue
            try:
                yield RawRecord(place, parse_json_object(text, limits))
            except MemoryError:
                yield RawRecord(place, problem=NO_MEMORY)
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))


@dataclass(frozen=True)
class TableBlock(Block):
    """Rows of an Arrow table, beginning with row number ``first`` of their file."""

    file: str
    first: int
    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    def head(self, count: int) -> TableBlock:
        return TableBlock(self.file, self.first, self.table.slice(0, count))

    def records(self, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[RawRecord]:
        texts = json_columns(self.table.schema)
        for index in range(len(self)):
            place = f"{self.file}: row {self.first + index}"
            try:
                (row,) = self.table.slice(index, 1).to_pylist()
                yield RawRecord(place, row_as_json(row, self.table.schema, limits, texts))
            except MemoryError:
                yield RawRecord(place, problem=NO_MEMORY)
            except UnicodeDecodeError as error:
                yield RawRecord(place, problem=f"a string is not valid UTF-8: {error}")
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))
            except (ValueError, OverflowError, KeyError) as error:  # dates beyond Python's, unknown time zones
                yield RawRecord(place, problem=f"a value cannot be read: {error}")


@dataclass(frozen=True)
class RefusedBlock(Block):
    """One record that was not read, and why."""

    place: str
    problem: str
    number: int = 1

    def __len__(self) -> int:
        return self.number

    def head(self, count: int) -> RefusedBlock:
        return RefusedBlock(self.place, self.problem, min(count, self.number))

    def records(self, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[RawRecord]:
        for _ in range(self.number):
            yield RawRecord(self.place, problem=self.problem)


@dataclass(frozen=True)
class SampleBlock(Block):
    """Samples of a tar."""

    file: str
    samples: list[TarSample]

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, count: int) -> SampleBlock:
        return SampleBlock(self.file, self.samples[:count])

    def records(self, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[RawRecord]:
        for sample in self.samples:
            place = f"{self.file}: sample {sample.key}"
            try:
                if sample.problem:
                    raise BadRecord(sample.problem)
                record = sample_record(sample, limits)
                yield RawRecord(place, record.value, attachments=record.images, unused=record.unused)
            except MemoryError:
                yield RawRecord(place, problem=NO_MEMORY)
            except UnicodeDecodeError as error:
                yield RawRecord(place, problem=f"the .txt is not valid UTF-8: {error}")
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))


def parse_json_object(line: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> dict[str, Any]:
    """One JSON object. Raises BadRecord with the reason."""
    value = parsed_json(line.rstrip(b"\r\n"), limits.record_values)
    if not isinstance(value, dict):
        raise BadRecord(f"a JSON {type(value).__name__}, not an object")
    return value
