"""The footer of Parquet files, read without Arrow: the same numbers as Arrow's for honest files, damage refused."""

import io
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.files.parquet_footer import ColumnChunk, RowGroup, read_footer
from megatron_apriel.data.raw.files.thrift_structs import DamagedStruct
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, LimitExceeded, ReadLimits
from megatron_apriel.errors import DataError

TABLE = pyarrow.table(
    {
        "text": [f"text {number % 37} " * (number % 11) for number in range(500)],
        "images": [[{"bytes": b"x" * number, "path": None}] for number in range(500)],
        "number": [float(number) for number in range(500)],
    }
)
CODECS = {0: "UNCOMPRESSED", 1: "SNAPPY", 2: "GZIP", 4: "BROTLI", 6: "ZSTD", 7: "LZ4"}


def number(value: int) -> bytes:
    """Of Thrift: sign in the lowest bit, seven bits a byte."""
    value, data = value << 1 if value >= 0 else (-value << 1) - 1, b""
    while value >= 0x80:
        value, data = value >> 7, data + bytes([value & 0x7F | 0x80])
    return data + bytes([value])


def field(identity: int, kind: int, value: bytes) -> bytes:
    return bytes([kind]) + number(identity) + value


def column(*more: bytes, codec: int = 1, packed: int = 70, start: int = 40) -> bytes:
    """A column chunk: its fields 4 (codec), 7 and 9, and more."""
    fields = field(4, 5, number(codec)), field(7, 6, number(packed)), field(9, 6, number(start)), *more
    return field(3, 12, b"".join(fields) + b"\0") + b"\0"


def footer(*groups: bytes, more: bytes = b"", rows: int | None = None) -> bytes:
    """A file of nothing but its footer."""
    data = field(3, 6, number(20 * len(groups) if rows is None else rows))
    data += field(4, 9, bytes([len(groups) << 4 | 12]) + b"".join(groups)) + more + b"\0"
    return b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1"


def group(*columns: bytes, more: bytes = b"") -> bytes:
    return field(1, 9, bytes([len(columns) << 4 | 12]) + b"".join(columns)) + field(3, 6, number(20)) + more + b"\0"


def read(data: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> list[RowGroup]:
    return read_footer(io.BytesIO(data), limits)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False, "write_statistics": False},
        {"row_group_size": 99, "write_page_index": True, "write_page_checksum": True},
        {"sorting_columns": [pyarrow.parquet.SortingColumn(2)], "store_schema": False},
    ],
)
def test_as_arrow_reads_it(compression, options, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(TABLE, path, compression=compression, **options)
    metadata = pyarrow.parquet.read_metadata(path)
    groups = read(path.read_bytes())
    assert [(found.number, found.rows) for found in groups] == [
        (place, metadata.row_group(place).num_rows) for place in range(metadata.num_row_groups)
    ]
    for found in groups:
        assert len(found.columns) == metadata.num_columns
        for place, chunk in enumerate(found.columns):
            reference = metadata.row_group(found.number).column(place)
            first = reference.dictionary_page_offset if reference.has_dictionary_page else reference.data_page_offset
            assert (chunk.start, chunk.packed) == (first, reference.total_compressed_size)
            assert CODECS[chunk.codec] == reference.compression


def test_a_footer_written_by_hand():
    dictionary = field(11, 6, number(9))
    more = field(20, 2, b"") + field(21, 11, b"\x01\x85\x01x\x02") + field(22, 10, b"\x21\x01\x02") + field(23, 3, b"x")
    unknown = field(30, 7, bytes(8)) + field(31, 12, field(1, 9, b"\x18\x03abc") + b"\0")
    assert read(footer(group(column(), column(dictionary, codec=18), more=more), more=unknown)) == [
        RowGroup(0, 20, (ColumnChunk(1, 40, 70), ColumnChunk(18, 9, 70)))
    ]
    assert read(footer()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not end in the footer"),
        (b"PAR1", "does not end in the footer"),
        (footer()[:-1] + b"E", "does not end in the footer"),
        (b"\xff\xff\xff\xffPAR1", "does not end in the footer"),
        (bytes(4) + b"PAR1", "the bytes end"),
        (footer(group(column(field(4, 5, number(1))))), "field 4 is there twice"),
        (footer(group(column(), more=field(1, 9, b"\x0c")), more=b""), "field 1 is there twice"),
        (footer(group(column(field(11, 5, number(9))))), "field 11 has the type 5"),
        (footer(group(column(field(2, 9, b"\x13\x01")))), "entries of the type 3"),
        (footer(group(column(field(16, 12, field(2, 9, b"\x18\x01x") + b"\0")))), "entries of the type 8"),
        (footer(group(b"\0")), "lacks field 4"),
        (footer(b"\0"), "lacks field 3"),
        (footer(group(column()), rows=21), "row groups have 20 rows, and its footer says 21"),
        (footer(group(column()), group(column()), rows=20), "row groups have 40 rows, and its footer says 20"),
        (footer(group(column(packed=-1))), "a column of -1 bytes"),
        (footer(group(column(start=-5))), "begins at byte -5"),
        (footer(group(column(packed=2**64))), "64 bits has 66"),
        (footer(group(column(codec=2**32 + 1))), "32 bits has 34"),
        (footer(more=field(2, 9, b"\xfc\xff\xff\xff\xff\x07")), "has 2,147,483,647 entries"),
        (footer(more=field(9, 9, b"\x19" * 50)), "nested too deeply"),
        (footer(more=field(9, 12, b"\x1c" * 50)), "nested too deeply"),
        (footer(more=field(9, 11, b"\x01\xbb" * 50)), "nested too deeply"),
        (footer(more=field(9, 8, b"\xff\xff\xff\xff\x0f")), "a text has"),
        (footer(more=field(9, 8, b"\xff" * 20)), "a number has no end"),
        (footer(more=field(9, 14, b"")), "a value has the type 14"),
        (footer(more=field(32767, 3, b"\0") + b"\x13\0"), "too high"),
    ],
)
def test_what_is_no_footer(data, message):
    with pytest.raises(DamagedStruct, match=message):
        read(data)


def test_a_footer_longer_than_a_record_and_one_of_columns_without_end(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(LimitExceeded, match="longer than 20 bytes"):
        patch.setattr("megatron_apriel.data.raw.files.parquet_footer.FREE_BYTES", 10)
        read(footer(group(column())), ReadLimits(record_bytes=20))
    entries = 100_000
    columns = field(1, 9, b"\xfc\xa0\x8d\x06" + bytes(entries)) + field(3, 6, number(20)) + b"\0"
    with pytest.raises(LimitExceeded, match="its footer grows from"):
        read(footer(columns))


class _NoMetadata:
    """Arrow's metadata, of which only what it does not check when it is asked may be asked."""

    def __init__(self, metadata):
        self.schema = metadata.schema


class _Unasked(pyarrow.parquet.ParquetFile):
    @property
    def metadata(self):
        return _NoMetadata(super().metadata)


def test_arrow_is_asked_for_no_row_group_or_column_chunk(tmp_path, monkeypatch):
    """Where it finds damage then, it ends the process."""
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=200)
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", _Unasked)
    (given,) = find_inputs([tmp_path / "a.parquet"]).readable
    found = [raw.value["text"] for block in given.blocks() for raw in block.records(DEFAULT_LIMITS)]
    assert found == TABLE["text"].to_pylist()


def test_a_column_that_is_missing_in_a_row_group(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet")
    monkeypatch.setattr("megatron_apriel.data.raw.files.readers.read_footer", lambda *_: read(footer(group(column()))))
    (given,) = find_inputs([tmp_path / "a.parquet"]).readable
    with pytest.raises(DataError, match="row group 0 has 1 column, and the schema has 4"):
        list(given.blocks())


def test_rows_that_no_row_group_counts(tmp_path, monkeypatch):
    """As where a bit of a number in the footer has changed: nothing else is wrong with the file."""
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet")
    for rows in (499, 501, 0):
        monkeypatch.setattr(
            "megatron_apriel.data.raw.files.readers.read_footer",
            lambda file, limits, rows=rows: [replace(found, rows=rows) for found in read_footer(file, limits)],
        )
        (given,) = find_inputs([tmp_path / "a.parquet"]).readable
        with pytest.raises(DataError, match=f"column text of row group 0 has 500 values for {rows} rows"):
            list(given.blocks())
