"""Small raw files that ask for memory or time without end, made by hand; none of them harms who does not unpack it."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard

MIB = 2**20

type Maker = Callable[[Path], Path]


def gzipped(piece: bytes, times: int, begin: bytes = b"") -> bytes:
    """``begin`` and so many times ``piece``, each a gzip member of its own."""
    return gzip.compress(begin) + gzip.compress(piece) * times


def zstd(piece: bytes, times: int, begin: bytes = b"") -> bytes:
    return zstandard.compress(begin) + zstandard.compress(piece) * times


def written(name: str, data: Callable[[], bytes]) -> Maker:
    def make(directory: Path) -> Path:
        (directory / name).write_bytes(data())
        return directory / name

    return make


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return tar_header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax_records(**fields: str) -> bytes:
    """Records of an extended header, "length field=value" each."""
    records = b""
    for name, value in fields.items():
        body = f" {name.replace('__', '.')}={value}\n".encode()
        length = next(size for size in range(len(body), len(body) + 9) if size == len(body) + len(str(size)))
        records += str(length).encode() + body
    return records


def gnu_sparse(size: int) -> bytes:
    """A member of the old GNU kind with one real block, said to have ``size`` bytes."""
    header = bytearray(tar_header("1.txt", 512, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"%011o\0%011o\0" % (size - 512, 512)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + bytes(1024)


def pax_sparse(size: int) -> bytes:
    fields = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__realsize": str(size)}
    fields["GNU__sparse__name"] = "1.txt"
    data = f"1\n{size - 5}\n5\n".encode().ljust(512, b"\0") + b"hello"
    return tar_member("x", pax_records(**fields), tarfile.XHDTYPE) + tar_member("1.txt", data) + bytes(1024)


def zstd_with_window(log: int) -> bytes:
    """One frame of a few bytes that asks for a window of ``2**log`` of them."""
    line = b'{"text": "x"}\n'
    return b"\x28\xb5\x2f\xfd\0" + bytes([log - 10 << 3]) + ((len(line) << 3) + 1).to_bytes(3, "little") + line


def hole(name: str, size: int, begin: bytes = b"") -> Maker:
    """A file of ``size`` bytes that takes no space on disk."""

    def make(directory: Path) -> Path:
        (directory / name).write_bytes(begin)
        os.truncate(directory / name, size)
        return directory / name

    return make


def parquet(table: Callable[[], pyarrow.Table], **options) -> Maker:
    def make(directory: Path) -> Path:
        pyarrow.parquet.write_table(table(), directory / "a.parquet", compression="zstd", **options)
        return directory / "a.parquet"

    return make


def one_text_many_times(size: int, times: int) -> pyarrow.DictionaryArray:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(times, np.int32)), pyarrow.array(["a" * size]))


def in_one_list(values: pyarrow.Array) -> pyarrow.Table:
    contents = pyarrow.StructArray.from_arrays([values], names=["content"])
    offsets = pyarrow.array([0, len(values)], pyarrow.int32())
    return pyarrow.table({"messages": pyarrow.ListArray.from_arrays(offsets, contents)})


def saved(directory: Path, change: Callable[[Path], None]) -> Path:
    datasets.Dataset.from_dict({"text": ["first", "second"]}).save_to_disk(directory / "saved")
    change(directory / "saved")
    return directory / "saved"


def saved_and_packed(directory: Path) -> Path:
    def change(place: Path) -> None:
        (file,) = place.glob("*.arrow")
        table = pyarrow.table({"text": ["a" * (64 * MIB)]})
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_stream(str(file), table.schema, options=options) as stream:
            stream.write_table(table)

    return saved(directory, change)


def saved_with_wrong_offsets(directory: Path) -> Path:
    def change(place: Path) -> None:
        (file,) = place.glob("*.arrow")
        data, offsets = file.read_bytes(), struct.pack("<iii", 0, 5, 11)
        assert data.count(offsets) == 1
        file.write_bytes(data.replace(offsets, struct.pack("<iii", 0, 2**30, 11)))

    return saved(directory, change)


def saved_elsewhere(directory: Path) -> Path:
    def change(place: Path) -> None:
        state = json.loads((place / "state.json").read_text())
        state["_data_files"] = [{"filename": "../other.arrow"}]
        (place / "state.json").write_text(json.dumps(state))

    return saved(directory, change)


LISTS = b"[],"

FILES: dict[str, tuple[str, Maker]] = {
    "one line, gzip": ("grows from", written("a.jsonl.gz", lambda: gzipped(bytes(16 * MIB), 64))),
    "one line, zstd": ("grows from", written("a.jsonl.zst", lambda: zstd(bytes(64 * MIB), 128))),
    "one line, one frame": ("grows from", written("a.jsonl.zst", lambda: zstd(bytes(256 * MIB), 1))),
    "one text": ("grows from", written("a.jsonl.gz", lambda: gzipped(b"a" * 16 * MIB, 64, b'{"text": "'))),
    "blank lines": ("grows from", written("a.jsonl.gz", lambda: gzipped(b"\n" * 16 * MIB, 64))),
    "a line without an end": ("on its disk it grows", hole("a.jsonl", 2**40)),
    "a text beyond what is tokenised": (
        "has 12,582,912 characters, more than 4,000,000",
        written("a.jsonl.gz", lambda: gzip.compress(b'{"text": "' + b"a" * 12 * MIB + b'"}\n')),
    ),
    "many values in a line": (
        "JSON of more than 524,288 values",
        written("a.jsonl.gz", lambda: gzip.compress(b'{"text": [' + LISTS * 5 * MIB + b"[]]}\n")),
    ),
    "an array's white space": ("grows from", written("a.json.gz", lambda: gzipped(b" " * 16 * MIB, 64, b"["))),
    "an array's string": ("grows from", written("a.json.gz", lambda: gzipped(b"a" * 16 * MIB, 64, b'["'))),
    "many values in an array's element": (
        "a record has too many values",
        written("a.json", lambda: b'[{"text": [' + LISTS * 5 * MIB + b"[]]}]"),
    ),
    "many values behind a long string": (
        "JSON of more than 524,288 values|too many values",
        written("a.json.gz", lambda: gzip.compress(b'["' + b"a" * 3 * MIB + b'", [' + LISTS * 4 * MIB + b"[]]]")),
    ),
    "deep nesting": ("not valid JSON: maximum recursion", written("a.jsonl", lambda: b'{"text": ' + b"[" * 400_000)),
    "a window of 2 GiB": ("a window of more than", written("a.jsonl.zst", lambda: zstd_with_window(31))),
    "a sparse member": ("sparse member", written("a.tar", lambda: gnu_sparse(2**42))),
    "a sparse member, pax": ("sparse member", written("a.tar", lambda: pax_sparse(2**42))),
    "an extended header of 8 GiB": (
        "an extended header of 8,000,000,000 bytes",
        written("a.tar", lambda: tar_header("x", 8 * 10**9, tarfile.XHDTYPE) + bytes(MIB)),
    ),
    "a name of 8 GiB": (
        "an extended header of 8,000,000,000 bytes",
        written("a.tar.gz", lambda: gzipped(bytes(16 * MIB), 64, tar_header("x", 8 * 10**9, b"L"))),
    ),
    "digits without end": (
        "extended header",
        written("a.tar", lambda: tar_member("x", b"1" * 60_000, tarfile.XHDTYPE) * 20 + bytes(1024)),
    ),
    "digits without end in a value": (
        "a number without end",
        written("a.tar", lambda: tar_member("x", pax_records(comment="1" * 60_000), tarfile.XHDTYPE) * 20),
    ),
    "fields as long as the header": (
        "a damaged extended header",
        written("a.tar", lambda: tar_member("x", b"4 a\n" * 16_000 + b"=\n", tarfile.XHDTYPE)),
    ),
    "a chain of headers": (
        "recursion",
        written("a.tar", lambda: tar_member("x", pax_records(comment="x"), tarfile.XHDTYPE) * 5000),
    ),
    "fields for all members": (
        "fields for all members",
        written(
            "a.tar",
            lambda: b"".join(
                tar_member("x", pax_records(**{f"f{number}": "x"}), tarfile.XGLTYPE) + tar_member("1.txt", b"x")
                for number in range(1000)
            ),
        ),
    ),
    "a member of 1 TiB": ("on its disk it grows", hole("a.tar", 2**40 + 1536, tar_header("1.txt", 2**40))),
    "a packed member of 4 GiB": (
        "grows from",
        written("a.tar.gz", lambda: gzipped(bytes(16 * MIB), 256, tar_header("1.txt", 2**32))),
    ),
    "a member before the file's beginning": (
        "a member of -|leads back",
        written(
            "a.tar", lambda: tar_member("x", pax_records(size="-5000"), tarfile.XHDTYPE) + tar_member("1.txt", b"x")
        ),
    ),
    "a line without an end, a hole in part": ("line 1 has no end", hole("a.jsonl", 1000 * MIB, b"a" * 10 * MIB)),
    "a member of 300 MiB": (
        "over 268,435,456; --max-record",
        hole("a.tar", 300 * MIB + 1536, tar_header("1.txt", 300 * MIB) + b"a" * 3 * MIB),
    ),
    "zeros behind a tar, a hole in part": (
        "zeros follow",
        hole("a.tar", 300 * MIB, tar_member("1.txt", b"x" * 3 * MIB) + bytes(1024)),
    ),
    "packed zeros behind a tar": (
        "grows from",
        written("a.tar.gz", lambda: gzipped(bytes(16 * MIB), 64, tar_member("1.txt", b"x") + bytes(1024))),
    ),
    "zeros behind a tar": ("on its disk it grows", hole("a.tar", 2**40, tar_member("1.txt", b"x") + bytes(1024))),
    "empty members": (
        "a sample has more than 10,000 members",
        written("a.tar.gz", lambda: gzipped(tar_header("1.txt", 0) * 2048, 16)),
    ),
    "one text in many rows": (
        "grows from",
        parquet(lambda: pyarrow.table({"text": one_text_many_times(3 * MIB, 1000)})),
    ),
    "one text many times in a row": ("grows from", parquet(lambda: in_one_list(one_text_many_times(10 * MIB, 300)))),
    "a page that grows": (
        "column text of row group 0 grows from",
        parquet(lambda: pyarrow.table({"text": ["a" * 64 * MIB]}), use_dictionary=False),
    ),
    "rows that grow": (
        "column text of row group 0 grows from",
        parquet(lambda: pyarrow.table({"text": ["a" * 2 * MIB + str(number) for number in range(32)]})),
    ),
    "a list of nothing": (
        "a list in a row of row group 0 grows from",
        parquet(lambda: in_one_list(pyarrow.nulls(20_000_000, pyarrow.string()))),
    ),
    "many values in a row": (
        "the row has .* values",
        parquet(lambda: in_one_list(pyarrow.nulls(2_000_000, pyarrow.string()))),
    ),
    "a packed data set": ("a packed record batch", saved_and_packed),
    "a data set's wrong offsets": ("cannot be read to its end", saved_with_wrong_offsets),
    "a data set's files elsewhere": ("names of files or directories beside it", saved_elsewhere),
}
"""What the message says, and how the file is made."""
