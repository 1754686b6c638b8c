"""Lines of plain and packed files: damage never taken for the end, padding and holes not followed without end."""

import gzip
import json
import os

import pytest
import zstandard
from test_raw_files import LINES, TEXTS, packed, read, tar_of, texts

from megatron_apriel.data.raw.read_limits import ReadLimits
from megatron_apriel.errors import DataError


@pytest.mark.parametrize("blank", [b"\n" * 5, b" \r\n\t\n" * 7, b"\n" * 3_000_000, b"   \n \n  "])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blank_lines_count_as_lines_and_not_as_records(blank, name, tmp_path):
    data = blank.join(f'{{"text": "{number}"}}\n'.encode() for number in range(4))
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    expected = [number for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert [int(raw.place.rpartition(":")[2]) for raw in read(tmp_path / name)] == expected
    assert texts(tmp_path / name) == list("0123")


def test_a_line_that_does_not_end_is_an_error_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n' + "x" * 6 * 2**20)
    with pytest.raises(DataError, match=r"line 2 has no end within .* bytes \(after line 1\)(?s:.*)raise --max-record"):
        read(tmp_path / "a.jsonl", ReadLimits(record_bytes=2**21))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tar.gz"])
def test_zeros_behind_the_end_of_gzip(name, tmp_path):
    data = gzip.compress(LINES if name == "a.jsonl.gz" else tar_of(range(5)))
    (tmp_path / name).write_bytes(data + bytes(10_000))
    assert len(read(tmp_path / name)) == (len(TEXTS) if name == "a.jsonl.gz" else 5)
    (tmp_path / name).write_bytes(data + bytes(2**21))
    with pytest.raises(DataError, match=r"cannot be read to its end: more than 1,048,576 zeros follow"):
        read(tmp_path / name)


def test_frames_of_zstd_to_be_skipped(tmp_path):
    index = b"\x50\x2a\x4d\x18" + (5000).to_bytes(4, "little") + bytes(5000)
    (tmp_path / "a.jsonl.zst").write_bytes(index + packed("a.zst") + index * 2)
    assert texts(tmp_path / "a.jsonl.zst") == TEXTS
    (tmp_path / "a.jsonl.zst").write_bytes(packed("a.zst") + index * 4000)
    with pytest.raises(DataError, match=r"cannot be read to its end: nothing comes out of 16,"):
        read(tmp_path / "a.jsonl.zst")


def test_holes_on_disk(tmp_path):
    """As of a copy that saves zeros: read as what they are, but not without end."""
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "1"}\n')
        file.seek(2**20)
        file.write(b'\n{"text": "2"}\n')
    first, second, third = read(tmp_path / "a.jsonl")
    assert (first.value, third.value) == ({"text": "1"}, {"text": "2"}) and second.problem
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**40)
        with pytest.raises(DataError, match=r"on its disk it grows from [0-9,]+ bytes to 1,099,511,627,776"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("cut", [0.2, 0.6, 0.999])
def test_truncated_compression_is_an_error_of_the_file(name, cut, tmp_path):
    data = packed(name)
    (tmp_path / name).write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(DataError, match=rf"{name} cannot be read to its end: .*after line \d+"):
        texts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_wrong_or_damaged_compression(name, tmp_path):
    damaged = bytearray(packed(name))
    damaged[len(damaged) // 2] ^= 0xFF
    for data in (LINES, bytes(damaged)):
        (tmp_path / name).write_bytes(data)
        try:
            assert texts(tmp_path / name) != TEXTS
        except DataError as error:
            assert "cannot be read to its end" in str(error)


def test_zstd_with_a_long_window(tmp_path):
    text = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(text) + packer.flush())
    assert [raw.value["text"] for raw in read(tmp_path / "a.jsonl.zst", ReadLimits(window_bytes=2**28))] == TEXTS
    with pytest.raises(DataError, match=r"a window of more than 134,217,728 bytes(?s:.*)raise --max-window"):
        read(tmp_path / "a.jsonl.zst")
