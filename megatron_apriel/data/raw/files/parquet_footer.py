"""Where the columns of a Parquet file lie, read from its footer here and not asked of Arrow.

Arrow's objects for a row group and its columns check more of the footer when they are made, and pyarrow does not catch
what they throw: the process would end, without a message, over a byte in a file. So they are made for no file; Arrow
checks the same when it reads, and then as an error. The field numbers are those of parquet.thrift.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from megatron_apriel.data.raw.files.thrift_structs import (
    BYTES,
    INT32,
    INT64,
    STRUCT,
    DamagedStruct,
    Fields,
    read_struct,
)
from megatron_apriel.data.raw.read_limits import FREE_BYTES, LimitExceeded, ReadLimits

_END = b"PAR1"
_TAIL_BYTES = 4 + len(_END)

# Everything in which there are lists, and the numbers that are needed. Lists are named since Arrow goes by their type
# in parquet.thrift, whatever they say themselves.
_SIZES: Fields = {2: [INT64], 3: [INT64]}
_GEOMETRY: Fields = {2: [INT32]}
_COLUMN: Fields = {
    2: [INT32], 3: [BYTES], 4: INT32, 7: INT64, 8: [STRUCT], 9: INT64, 11: INT64, 13: [STRUCT], 16: _SIZES,
    17: _GEOMETRY,
}  # fmt: skip
_ENCRYPTION: Fields = {2: {1: [BYTES]}}
_GROUP: Fields = {1: [{3: _COLUMN, 8: _ENCRYPTION}], 3: INT64, 4: [STRUCT]}
_FOOTER: Fields = {2: [STRUCT], 3: INT64, 4: [_GROUP], 5: [STRUCT], 7: [STRUCT]}

_OBJECT_BYTES = 1024
"""Memory that Arrow takes for a column of a row group."""


@dataclass(frozen=True)
class ColumnChunk:
    """The column of a row group: its codec's number, and where its pages begin and end."""

    codec: int
    start: int
    packed: int


@dataclass(frozen=True)
class RowGroup:
    """Rows of a file, with a chunk for each leaf of its schema; numbered from 0."""

    number: int
    rows: int
    columns: tuple[ColumnChunk, ...]


def read_footer(file: BinaryIO, limits: ReadLimits) -> list[RowGroup]:
    """The row groups of a Parquet file; its place is moved.

    Raises:
        DamagedStruct: the file has no footer that can be read, or one that counts its rows in two ways.
        LimitExceeded: it is too long, or of more columns than its length allows.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != _END or size > end - _TAIL_BYTES:
        raise DamagedStruct("the file does not end in the footer of a Parquet file")
    if size > (most := max(limits.record_bytes, FREE_BYTES)):
        raise LimitExceeded(f"its footer is longer than {most:,} bytes", "--max-record")
    file.seek(end - _TAIL_BYTES - size)
    footer = read_struct(io.BytesIO(file.read(size)), _FOOTER, "its footer")
    groups = footer.get(4) or []
    columns = sum(len(group.get(1) or ()) for group in groups)
    limits.check_growth(size, columns * _OBJECT_BYTES, "its footer")
    found = [
        RowGroup(number, _required(group, 3), tuple(map(_column, group.get(1) or ())))
        for number, group in enumerate(groups)
    ]
    if (rows := sum(group.rows for group in found)) != _required(footer, 3):
        raise DamagedStruct(f"its row groups have {rows:,} rows, and its footer says {footer[3]:,}")
    return found


def _column(chunk: dict[int, Any]) -> ColumnChunk:
    fields = chunk.get(3) or {}
    codec, packed, start = (_required(fields, field) for field in (4, 7, 9))
    if 0 < (dictionary := fields.get(11, 0)) < start:
        start = dictionary
    if start < 0 or packed < 0:
        raise DamagedStruct(f"a column of {packed} bytes begins at byte {start}")
    return ColumnChunk(codec, start, packed)


def _required(struct: dict[int, Any], field: int) -> int:
    if field not in struct:
        raise DamagedStruct(f"its footer lacks field {field} of itself, a row group or a column")
    return int(struct[field])
