"""Parquet pages looked through before they are unpacked, and rows measured before they are copied."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.files.parquet_footer import ColumnChunk, RowGroup, read_footer
from megatron_apriel.data.raw.files.parquet_pages import reading_plan
from megatron_apriel.data.raw.files.table_rows import UnreadableColumn, row_blocks, row_costs
from megatron_apriel.data.raw.files.thrift_structs import DamagedStruct
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import open_input

MIB = 2**20
ANY = ReadLimits(expansion=10**9)

TEXTS = [f"text {number % 37} " * (number % 11) for number in range(500)]
TABLE = pyarrow.table(
    {
        "text": TEXTS,
        "messages": [[{"role": "user", "content": text, "n": [1.5, None]}] * (len(text) % 4) for text in TEXTS],
        "images": [[{"bytes": text.encode(), "path": None}] if text else None for text in TEXTS],
        "tools": pyarrow.array([[(text, text)] for text in TEXTS], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    }
)


def rows_of(path, limits=DEFAULT_LIMITS):
    (given,) = find_inputs([path], limits=limits).readable
    return [raw for block in given.blocks() for raw in block.records(limits)]


def plan_of(path, column, limits=DEFAULT_LIMITS):
    with open_input(path) as file, pyarrow.parquet.ParquetFile(path) as parquet:
        return reading_plan(file, parquet.schema, read_footer(file, limits)[0], [column], 64, limits)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_size": 100, "row_group_size": 99}])
def test_every_way_to_write_pages_is_read(version, compression, options, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(TABLE, path, data_page_version=version, compression=compression, **options)
    expected = [
        {"text": text, "images": [{"bytes": text.encode()}] if text else None} for text in TEXTS
    ]  # a field that is empty inside of a column is absent
    found = rows_of(path)
    assert [{name: raw.value[name] for name in ("text", "images")} for raw in found] == expected
    assert [raw.value["messages"] for raw in found] == [
        [{"role": "user", "content": text, "n": [1.5, None]}] * (len(text) % 4) for text in TEXTS
    ]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_other_encodings_of_texts(encoding, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(TABLE, path, use_dictionary=False, column_encoding={"text": encoding})
    assert [raw.value["text"] for raw in rows_of(path)] == TEXTS


def test_columns_of_fixed_width_and_dictionaries_of_the_writer(tmp_path):
    path, codes = tmp_path / "a.parquet", [bytes([number % 251]) * 16 for number in range(500)]
    table = pyarrow.table(
        {"text": pyarrow.array(TEXTS).dictionary_encode(), "images": pyarrow.array(codes, pyarrow.binary(16))}
    )
    pyarrow.parquet.write_table(table, path)
    assert [(raw.value["text"], raw.value["images"]) for raw in rows_of(path)] == list(zip(TEXTS, codes, strict=True))


def test_few_rows_at_a_time_where_a_dictionary_has_long_texts(tmp_path):
    texts = [str(number % 3) * 4 * MIB for number in range(40)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "tools": ["x"] * 40}), tmp_path / "a.parquet")
    assert plan_of(tmp_path / "a.parquet", "text", ANY).rows == 16
    assert plan_of(tmp_path / "a.parquet", "tools", ANY).rows == 64
    (given,) = find_inputs([tmp_path / "a.parquet"], limits=ANY).readable
    blocks = list(given.blocks())
    assert max(block.table.get_total_buffer_size() for block in blocks) < 5 * MIB
    assert [raw.value["text"] for block in blocks for raw in block.records(ANY)] == texts


def test_lists_of_long_texts_are_kept_as_references_until_they_are_measured(tmp_path):
    texts = [str(number) * MIB for number in range(3)]
    lists = [[{"content": texts[(row + number) % 3]} for number in range(row % 5)] for row in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"messages": lists}), tmp_path / "a.parquet")
    (reference,) = plan_of(tmp_path / "a.parquet", "messages", ANY).references
    assert reference.startswith("messages.") and reference.endswith(".content")
    assert [raw.value["messages"] for raw in rows_of(tmp_path / "a.parquet", ANY)] == lists
    found = rows_of(tmp_path / "a.parquet", ReadLimits(expansion=10**9, record_bytes=3 * MIB))
    refused = [number for number, raw in enumerate(found) if "the row has 4,194,304 bytes" in raw.problem]
    assert refused == [number for number in range(50) if number % 5 == 4]
    assert [raw.value["messages"] for raw in found if not raw.problem] == [one for one in lists if len(one) < 4]


def test_damaged_headers_of_pages_are_errors_of_the_file(tmp_path):
    """Whatever a byte becomes, it is read, or refused by name."""
    pyarrow.parquet.write_table(TABLE.slice(0, 20), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    assert plan_of(tmp_path / "a.parquet", "text")
    damaged = 0
    for place in range(4, 60):
        for value in (0x00, 0x1C, 0x80, 0xFF):
            (tmp_path / "a.parquet").write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                rows_of(tmp_path / "a.parquet")
            except DataError as error:
                assert "a.parquet" in str(error)
                damaged += 1
    assert damaged > 20


def test_a_header_without_an_end(tmp_path):
    group = RowGroup(0, 20, (ColumnChunk(0, 4, 100),))
    pyarrow.parquet.write_table(TABLE.slice(0, 20).select(["text"]), tmp_path / "a.parquet")
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as parquet:
        for data in (b"", b"\x15", b"\x15" + b"\xff" * 20, b"\x1c" * 100, b"\x19\x00", b"\x15\x00\x15\x01\x15\x00\x00"):
            (tmp_path / "b.parquet").write_bytes(b"PAR1" + data)
            with open_input(tmp_path / "b.parquet") as file, pytest.raises(DamagedStruct):
                reading_plan(file, parquet.schema, group, ["text"], 64, DEFAULT_LIMITS)


@pytest.mark.parametrize("first", [0, 3])
def test_what_a_row_takes(first):
    """Counted by hand from the values; also for a slice of a larger table."""
    (batch,) = TABLE.combine_chunks().to_batches()
    batch = batch.slice(first, 100)
    sizes, values = row_costs(batch)
    for number, row in enumerate(batch.to_pylist()):
        text, messages, images = row["text"], row["messages"], row["images"] or []
        expected = len(text) + len(messages) * (len("user") + len(text) + 2 * 8) + 2 * len(text)
        expected += sum(len(image["bytes"]) for image in images)
        assert sizes[number] == expected
        # The text; the list, and for each message itself, role, content, list, two numbers; images, each with two
        # fields; the map with its key and its value.
        assert values[number] == 1 + (1 + 6 * len(messages)) + (1 + 3 * len(images)) + 3


def test_rows_are_measured_through_dictionaries_views_and_fixed_lists():
    long = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, None, 1, 0]), pyarrow.array(["abc", "de"]))
    views = pyarrow.array(["a", None, "x" * 100, ""], pyarrow.string_view())
    pairs = pyarrow.array([[1, 2], None, [3, 4], [5, 6]], pyarrow.list_(pyarrow.int16(), 2))
    nothing = pyarrow.nulls(4)
    batch = pyarrow.RecordBatch.from_arrays([long, views, pairs, nothing], names=list("abcd"))
    sizes, values = row_costs(batch)
    assert sizes.tolist() == [3 + 1 + 4, 0 + 0 + 4, 2 + 100 + 4, 3 + 0 + 4]
    assert values.tolist() == [1 + 1 + 3 + 1] * 4
    assert row_costs(batch.slice(2))[0].tolist() == sizes[2:].tolist()
    blocks = row_blocks("a", 0, batch, (sizes, values), DEFAULT_LIMITS, MIB)
    assert [row for block in blocks for row in block.table.to_pylist()] == batch.to_pylist()


def test_columns_that_are_not_read():
    union = pyarrow.UnionArray.from_sparse(pyarrow.array([0, 0], pyarrow.int8()), [pyarrow.array(np.arange(2))])
    with pytest.raises(UnreadableColumn, match=r"column a: it has the type sparse_union.*--ignore a"):
        row_costs(pyarrow.RecordBatch.from_arrays([union], names=["a"]))
