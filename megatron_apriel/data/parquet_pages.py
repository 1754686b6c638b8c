"""What a Parquet file unpacks to, from the headers of its pages, before Arrow is asked to unpack anything.

The footer of a Parquet file says how large its columns are, and so does every page; only the pages' word counts, since
Arrow makes room for what they declare. Three ways to grow are looked for in the columns that will be read:

- A page that unpacks to far more than it is packed in.
- A list in one row with more entries than its bytes could hold: repeated numbers take no space in the file.
- A dictionary: a text that stands in the file once may be referred to by any number of values. Where each row has one
  value, few rows are read at a time; where a row may have many, the column is kept as references.

A page's header is a struct of Thrift's compact protocol; the field numbers are those of parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from megatron_apriel.data.read_limits import FREE_BYTES, LimitExceeded, ReadLimits

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY
_DELTA_BYTE_ARRAY = 7
_BATCH_BYTES = 4 * FREE_BYTES
"""What a batch of rows may come to by references to a dictionary."""
_DEPTH = 8
"""Structs in structs; a page's header has three."""


class DamagedPage(ValueError):
    """A page's header that cannot be read."""


@dataclass(frozen=True)
class ReadingPlan:
    """How to read a row group.

    Attributes:
        rows: at a time.
        references: columns, as paths of leaves, to be kept as references to their dictionaries.
        packed_bytes: that the columns take in the file.
    """

    rows: int
    references: tuple[str, ...]
    packed_bytes: int


@dataclass
class _Column:
    """The column of a row group: counts over its pages."""

    values: int = 0
    packed: int = 0
    referring: int = 0
    longest: int = 0  # bytes that a value may have by reference to another


def reading_plan(
    file: BinaryIO, parquet: Any, group: int, columns: Sequence[str], rows: int, limits: ReadLimits
) -> ReadingPlan:
    """Look through the pages of a row group's columns.

    Args:
        file: the Parquet file; its place is moved.
        parquet: the ``pyarrow.parquet.ParquetFile`` of it.
        group: number of the row group.
        columns: names of the columns that will be read.
        rows: most to read at a time.
        limits: on growth.

    Raises:
        DamagedPage: a header cannot be read.
        LimitExceeded: the columns would grow beyond the limits.
    """
    metadata = parquet.metadata.row_group(group)
    references, packed, entries = [], 0, 0
    for number in range(metadata.num_columns):
        leaf, chunk = parquet.schema.column(number), metadata.column(number)
        if not any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns):
            continue
        what = f"column {leaf.path} of row group {group}"
        width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 1
        if width > limits.record_bytes:
            raise LimitExceeded(f"{what} has values of {width:,} bytes", "--max-record")
        found = _looked_through(file, chunk, what, limits)
        packed += found.packed
        if leaf.max_repetition_level:
            entries = max(entries, (found.values - metadata.num_rows) * width)
            if found.referring * found.longest > _BATCH_BYTES:
                references.append(leaf.path)
        else:
            rows = max(1, min(rows, _BATCH_BYTES // max(width, found.longest)))
    limits.check_growth(packed, entries, f"a list in a row of row group {group}")
    return ReadingPlan(rows, tuple(references), packed)


def _looked_through(file: BinaryIO, chunk: Any, what: str, limits: ReadLimits) -> _Column:
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (first := chunk.dictionary_page_offset or 0) < place:
        place = first
    end = place + chunk.total_compressed_size
    column, dictionary = _Column(packed=chunk.total_compressed_size), 0
    while place < end:
        file.seek(place)
        header = _struct(file, 0)
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        if unpacked < 0 or packed < 0:
            raise DamagedPage(f"{what} has a page of {packed} bytes, unpacked {unpacked}")
        limits.check_growth(packed, unpacked, what)
        place = file.tell() + packed
        if kind == _DICTIONARY:
            dictionary = max(dictionary, _longest_entry(file.read(packed), unpacked, chunk.compression))
        elif kind in (_DATA, _DATA_V2):
            page = header.get(8 if kind == _DATA_V2 else 5)
            if not isinstance(page, dict):
                raise DamagedPage(f"{what} has a page that does not say what it holds")
            values, encoding = _number(page, 1), _number(page, 4 if kind == _DATA_V2 else 2)
            column.values += values
            if encoding in (*_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY):
                column.referring += values
                column.longest = max(column.longest, unpacked if encoding == _DELTA_BYTE_ARRAY else dictionary)
    return column


def _longest_entry(packed: bytes, unpacked: int, compression: str) -> int:
    """Bytes of the longest text in a dictionary page; the page's own where that cannot be seen."""
    import pyarrow

    try:
        codec = None if compression == "UNCOMPRESSED" else pyarrow.Codec(compression.lower())
        page = packed if codec is None else codec.decompress(packed, unpacked, asbytes=True)
    except (ValueError, OSError):  # a codec that is not here, or damage, which Arrow will find
        return unpacked
    place = longest = 0
    while place + 4 <= len(page):
        length = int.from_bytes(page[place : place + 4], "little")
        longest, place = max(longest, length), place + 4 + length
    return min(longest, unpacked) if place == len(page) else unpacked


def _number(struct: dict[int, Any], field: int) -> int:
    value = struct.get(field)
    if not isinstance(value, int):
        raise DamagedPage(f"a page's header has no field {field}")
    return value


def _struct(file: BinaryIO, depth: int) -> dict[int, Any]:
    """Fields of a struct by number; only numbers and structs are kept."""
    if depth > _DEPTH:
        raise DamagedPage("a page's header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while kind := (byte := _byte(file)) & 0x0F:
        number = number + (byte >> 4) if byte >> 4 else _signed(file)
        fields[number] = _value(file, kind, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> Any:
    """A value of one of Thrift's types: 1, 2 truth, 3 byte, 4 to 6 integers, 7 double, 8 bytes, 12 struct."""
    match kind:
        case 1 | 2:
            return None
        case 3:
            return _byte(file)
        case 4 | 5 | 6:
            return _signed(file)
        case 7:
            file.seek(8, 1)
        case 8:
            file.seek(_unsigned(file), 1)
        case 12:
            return _struct(file, depth + 1)
        case _:
            raise DamagedPage(f"a page's header has a field of the type {kind}")
    return None


def _byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise DamagedPage("the file ends in a page's header")
    return byte[0]


def _bytes_of_number(file: BinaryIO) -> Iterator[int]:
    for _ in range(10):
        yield (byte := _byte(file))
        if byte < 0x80:
            return
    raise DamagedPage("a page's header has a number without end")


def _unsigned(file: BinaryIO) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(_bytes_of_number(file)))


def _signed(file: BinaryIO) -> int:
    value = _unsigned(file)
    return value >> 1 ^ -(value & 1)
