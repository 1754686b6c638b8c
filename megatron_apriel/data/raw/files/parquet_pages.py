"""What a Parquet file unpacks to, from the headers of its pages, before Arrow is asked to unpack anything.

The footer of a Parquet file says how large its columns are, and so does every page; only the pages' word counts, since
Arrow makes room for what they declare. Three ways to grow are looked for in the columns that will be read:

- A page that unpacks to far more than it is packed in.
- A list in one row with more entries than its bytes could hold: repeated numbers take no space in the file.
- A dictionary: a text that stands in the file once may be referred to by any number of values. Where each row has one
  value, few rows are read at a time; where a row may have many, the column is kept as references.

The field numbers are those of parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from megatron_apriel.data.raw.files.parquet_footer import ColumnChunk, RowGroup
from megatron_apriel.data.raw.files.thrift_structs import INT32, DamagedStruct, Fields, read_struct
from megatron_apriel.data.raw.read_limits import FREE_BYTES, LimitExceeded, ReadLimits
from megatron_apriel.quantities import counted

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY
_DELTA_BYTE_ARRAY = 7
_BATCH_BYTES = 4 * FREE_BYTES
"""What a batch of rows may come to by references to a dictionary."""
_PAGE: Fields = {1: INT32, 2: INT32, 3: INT32, 5: {1: INT32, 2: INT32}, 8: {1: INT32, 4: INT32}}
"""Kind of the page, bytes unpacked and packed; values and encoding of pages of either version."""
_UNCOMPRESSED = 0
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""Those of Parquet's codecs that Arrow has by themselves; LZO it has not, and 5 is LZ4 in a frame of Hadoop's."""


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
    file: BinaryIO, schema: Any, group: RowGroup, columns: Sequence[str], rows: int, limits: ReadLimits
) -> ReadingPlan:
    """Look through the pages of a row group's columns.

    Args:
        file: the Parquet file; its place is moved.
        schema: the ``pyarrow.parquet.ParquetSchema`` of it.
        group: of :func:`~megatron_apriel.data.raw.files.parquet_footer.read_footer`.
        columns: names of the columns that will be read.
        rows: most to read at a time.
        limits: on growth.

    Raises:
        DamagedStruct: a header cannot be read, or rows are missing.
        LimitExceeded: the columns would grow beyond the limits.
    """
    if len(group.columns) != len(schema):
        raise DamagedStruct(
            f"row group {group.number} has {counted(len(group.columns), 'column')}, and the schema has {len(schema)}"
        )
    references, packed, entries = [], 0, 0
    for number, chunk in enumerate(group.columns):
        leaf = schema.column(number)
        if not any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns):
            continue
        if not group.rows and not chunk.start:
            continue  # of an empty shard: the column has no page
        what = f"column {leaf.path} of row group {group.number}"
        width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 1
        if width > limits.record_bytes:
            raise LimitExceeded(f"{what} has values of {width:,} bytes", "--max-record")
        found = _looked_through(file, chunk, what, limits)
        packed += found.packed
        if found.values < group.rows or (found.values > group.rows and not leaf.max_repetition_level):
            raise DamagedStruct(f"{what} has {found.values:,} values for {group.rows:,} rows")
        if leaf.max_repetition_level:
            entries = max(entries, (found.values - group.rows) * width)
            if found.referring * found.longest > _BATCH_BYTES:
                references.append(leaf.path)
        else:
            rows = max(1, min(rows, _BATCH_BYTES // max(width, found.longest)))
    limits.check_growth(packed, entries, f"a list in a row of row group {group.number}")
    return ReadingPlan(rows, tuple(references), packed)


def _looked_through(file: BinaryIO, chunk: ColumnChunk, what: str, limits: ReadLimits) -> _Column:
    place, end = chunk.start, chunk.start + chunk.packed
    column, dictionary = _Column(packed=chunk.packed), 0
    while place < end:
        file.seek(place)
        header = read_struct(file, _PAGE, f"the header of a page of {what}")
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        if unpacked < 0 or packed < 0:
            raise DamagedStruct(f"{what} has a page of {packed} bytes, unpacked {unpacked}")
        limits.check_growth(packed, unpacked, what)
        place = file.tell() + packed
        if kind == _DICTIONARY:
            dictionary = max(dictionary, _longest_entry(file.read(packed), unpacked, chunk.codec))
        elif kind in (_DATA, _DATA_V2):
            page = header.get(8 if kind == _DATA_V2 else 5)
            if page is None:
                raise DamagedStruct(f"{what} has a page that does not say what it holds")
            values, encoding = _number(page, 1), _number(page, 4 if kind == _DATA_V2 else 2)
            column.values += values
            if encoding in (*_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY):
                column.referring += values
                column.longest = max(column.longest, unpacked if encoding == _DELTA_BYTE_ARRAY else dictionary)
    return column


def _longest_entry(packed: bytes, unpacked: int, codec: int) -> int:
    """Bytes of the longest text in a dictionary page; the page's own where that cannot be seen."""
    import pyarrow

    page = packed
    if codec != _UNCOMPRESSED:
        if codec not in _CODECS:
            return unpacked
        try:
            page = pyarrow.Codec(_CODECS[codec]).decompress(packed, unpacked, asbytes=True)
        except (ValueError, OSError):  # a codec that is not here, or damage, which Arrow will find
            return unpacked
    place = longest = 0
    while place + 4 <= len(page):
        length = int.from_bytes(page[place : place + 4], "little")
        longest, place = max(longest, length), place + 4 + length
    return min(longest, unpacked) if place == len(page) else unpacked


def _number(struct: dict[int, Any], field: int) -> int:
    if field not in struct:
        raise DamagedStruct(f"a page's header has no field {field}")
    return int(struct[field])
