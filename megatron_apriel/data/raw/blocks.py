"""Blocks of raw records: what the reading process hands to the workers, unparsed.

A block says where each of its records stands in its file, so that a problem can be reported with its place. Parsing
happens where :meth:`Block.records` is called, in a worker. A record that cannot be parsed is that record's problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.records import IMAGE_FIELDS, recognise

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
DOCUMENT_SUFFIXES = (".json", ".txt")
NO_MEMORY = "there is not enough memory for it"


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
        for index in range(len(self)):
            place = f"{self.file}: row {self.first + index}"
            try:
                (row,) = self.table.slice(index, 1).to_pylist()
                for column in self.table.schema:
                    if column.name not in IMAGE_FIELDS:
                        row[column.name] = _as_json(row[column.name], column.type, limits)
                yield RawRecord(place, row)
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


def _as_json(value: Any, kind: Any, limits: ReadLimits) -> Any:
    """A value of the Arrow type ``kind`` as the JSON that it came from had it.

    All rows of a table have the fields of any: the arguments of one tool would stand, empty, in the calls of all
    others. What is empty is therefore taken for absent, inside a column. Columns of JSON texts are parsed.
    """
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, pyarrow.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return parsed_json(value, limits.record_values, "a column's text")
        return _as_json(value, kind.storage_type, limits)
    if pyarrow.types.is_struct(kind):
        inner = {part.name: _as_json(value[part.name], part.type, limits) for part in kind}
        return {name: part for name, part in inner.items() if part is not None}
    if hasattr(kind, "value_type") and isinstance(value, list):
        return [_as_json(part, kind.value_type, limits) for part in value]
    return value


@dataclass(frozen=True)
class TarSample:
    """Members of a tar that share a key.

    Attributes:
        key: their name up to its first dot.
        members: names and bytes; None for a link, which has no bytes of its own.
        problem: why some of them were not read, or "".
    """

    key: str
    members: dict[str, bytes | None]
    problem: str = ""


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
                value, images = _sample(sample.members, limits)
                yield RawRecord(place, value, attachments=images)
            except MemoryError:
                yield RawRecord(place, problem=NO_MEMORY)
            except UnicodeDecodeError as error:
                yield RawRecord(place, problem=f"the .txt is not valid UTF-8: {error}")
            except BadRecord as problem:
                yield RawRecord(place, problem=str(problem))


def _sample(members: dict[str, bytes | None], limits: ReadLimits) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of a tar's sample, and its images by name.

    A ``.txt`` is the caption of all images; beside a ``.json`` that has no text of its own, as well. Raises BadRecord
    for a sample of which something would be left out, and UnicodeDecodeError for a caption.
    """
    data = {name: content for name, content in members.items() if content is not None}
    if links := members.keys() - data.keys():
        raise BadRecord(f"{', '.join(sorted(links))}: a link to another member, whose bytes are not in the sample")
    images = {name: content for name, content in data.items() if name.lower().endswith(IMAGE_SUFFIXES)}
    documents, captions = ([name for name in data if name.lower().endswith(end)] for end in DOCUMENT_SUFFIXES)
    for several in (documents, captions):
        if len(several) > 1:
            raise BadRecord(f"{' and '.join(several)} are one sample: a sample is what is alike up to its first dot")
    value = parse_json_object(data[documents[0]], limits) if documents else {}
    if captions and recognise(value) is None:
        unknown = [name for name in data if name not in (*images, *documents, *captions)]
        if unknown:
            raise BadRecord(f"a caption beside {', '.join(unknown)}, which may be its image and is of no known kind")
        value["text"] = "<image>\n" * len(images) + data[captions[0]].decode("utf-8")
    elif not documents:
        raise BadRecord(f"no .json and no .txt among {', '.join(members)}")
    if images and not any(value.get(name) for name in IMAGE_FIELDS):
        value["images"] = list(images.values())
    return value, images


def parse_json_object(line: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> dict[str, Any]:
    """One JSON object. Raises BadRecord with the reason."""
    value = parsed_json(line, limits.record_values)
    if not isinstance(value, dict):
        raise BadRecord(f"a JSON {type(value).__name__}, not an object")
    return value
