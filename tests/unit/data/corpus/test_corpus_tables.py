"""What a corpus's files may not claim: numbers that wrap, sizes that are not there, files that are none."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest

from megatron_apriel.data.corpus import files as files_module
from megatron_apriel.data.corpus import token_index
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.errors import DataError

FILES = ("tokens.bin", "tokens.idx", "responses.bin", "images.bin", "images.npy", "documents.npy")
INT32, INT64 = np.iinfo(np.int32), np.iinfo(np.int64)


def set_manifest(corpus: Corpus, place: str, value: object) -> None:
    file = corpus.path / "corpus.json"
    manifest = json.loads(file.read_text())
    *above, last = place.split("/")
    inner = manifest
    for name in above:
        inner = inner[name]
    inner[last] = value
    file.write_text(json.dumps(manifest))


def write_file(corpus: Corpus, name: str, content: bytes) -> None:
    """A file with the size that the manifest says."""
    (corpus.path / name).write_bytes(content)
    set_manifest(corpus, f"files/{name}", len(content))


def change_table(corpus: Corpus, name: str, column: str, values: dict[int, int]) -> None:
    table = np.load(corpus.path / name)
    for row, value in values.items():
        table[column][row] = value
    np.save(corpus.path / name, table)


def check_refused(corpus: Corpus, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Corpus.open(corpus.path)
    assert "corpus" in str(caught.value)


@pytest.mark.parametrize("column", ["tokens", "images", "responses"])
@pytest.mark.parametrize("value", [-1, INT64.min, INT64.max, 2**31, 2**32 + 5, 2**33])
def test_numbers_of_documents_out_of_range_are_refused(corpus, column, value):
    change_table(corpus, "documents.npy", column, {0: value})
    check_refused(corpus, r"documents\.npy has a row 0 that is impossible: .*" + str(value))


@pytest.mark.parametrize("column", ["tokens", "images", "responses"])
def test_sums_that_wrap_to_the_expected_ones_are_refused(corpus, column):
    table = np.load(corpus.path / "documents.npy")
    total, quarter = int(table[column].sum()), 2**62
    change_table(corpus, "documents.npy", column, {0: quarter, 1: quarter, 2: quarter, 3: quarter + total})
    changed = np.load(corpus.path / "documents.npy")[column]
    assert int(changed.sum()) == total and (changed > 0).all()
    if column == "tokens":
        token_index.write_index(corpus.path / "tokens.idx", changed)  # wraps in the same way
    check_refused(corpus, r"documents\.npy has a row 0 that is impossible")


def test_more_responses_or_images_than_tokens_are_refused(corpus):
    for column in ("responses", "images"):
        table = np.load(corpus.path / "documents.npy")
        change_table(corpus, "documents.npy", column, {3: 2})
        check_refused(corpus, r"documents\.npy has a row 3 that is impossible")
        np.save(corpus.path / "documents.npy", table)


@pytest.mark.parametrize("value", [-1, 1, INT64.min, INT64.max])
def test_first_images_out_of_order_are_refused(corpus, value):
    change_table(corpus, "documents.npy", "first_image", {2: 5 if value == 1 else value})
    check_refused(corpus, r"documents\.npy has a row 2 that does not number the images in order")


@pytest.mark.parametrize("rows", [1, 2, 1 << 20])
def test_tables_are_read_in_blocks(corpus, rows, monkeypatch):
    monkeypatch.setattr(files_module, "ROWS", rows)
    monkeypatch.setattr(token_index, "BLOCK", rows)
    assert len(Corpus.open(corpus.path)) == 4
    content = (corpus.path / "tokens.idx").read_bytes()
    (corpus.path / "tokens.idx").write_bytes(content[:-8] + b"\5" + content[-7:])
    check_refused(corpus, r"tokens\.idx disagrees with documents\.npy")
    (corpus.path / "tokens.idx").write_bytes(content)
    change_table(corpus, "images.npy", "start", {2: 1})
    check_refused(corpus, r"images\.npy has a row 1 that overlaps the next image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document": -1}, "belongs to no document"),
        ({"document": 4}, "belongs to no document"),
        ({"document": INT64.max}, "belongs to no document"),
        ({"document": INT64.min}, "belongs to no document"),
        ({"document": 0}, r"disagrees with documents\.npy"),
        ({"document": 2}, r"disagrees with documents\.npy"),
        ({"offset": -1}, r"lies outside the \d+ bytes of images\.bin"),
        ({"offset": INT64.max}, r"lies outside the \d+ bytes of images\.bin"),
        ({"offset": INT64.max, "size": INT64.max}, r"lies outside the \d+ bytes of images\.bin"),  # their sum is -2
        ({"offset": INT64.max, "size": 1}, r"lies outside the \d+ bytes of images\.bin"),
        ({"offset": 1, "size": INT64.max}, r"lies outside the \d+ bytes of images\.bin"),
        ({"offset": INT64.min, "size": INT64.min}, r"lies outside the \d+ bytes of images\.bin"),  # 0
        ({"size": -1}, r"lies outside the \d+ bytes of images\.bin"),
        ({"size": INT64.min}, r"lies outside the \d+ bytes of images\.bin"),
        ({"height": 0}, "has no pixels or no patches"),
        ({"height": -9}, "has no pixels or no patches"),
        ({"width": INT32.min}, "has no pixels or no patches"),
        ({"rows": -3, "columns": -5}, "has no pixels or no patches"),
        ({"rows": INT32.max, "columns": INT32.max}, "has another grid than the rule gives"),
        ({"rows": 2}, "has another grid than the rule gives"),
        ({"columns": 3}, "has another grid than the rule gives"),
        ({"rows": 1, "columns": 14}, "has another grid than the rule gives"),  # as many tokens as 3 x 4
        ({"height": INT32.max}, "has another grid than the rule gives"),
        ({"start": -1}, "begins outside its document"),
        ({"start": INT64.max}, "begins outside its document"),  # with its tokens, a negative end
        ({"start": INT64.min}, "begins outside its document"),
        ({"start": 22}, "begins outside its document"),
        ({"start": 8}, "ends outside its document"),
    ],
)
def test_rows_of_images_that_are_impossible_are_refused(corpus, changes, message):
    for column, value in changes.items():
        change_table(corpus, "images.npy", column, {0: value})
    check_refused(corpus, rf"images\.npy has a row 0 that {message}.*: \{{'document'")


@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        (f"counts/{name}", value, f"counts.{name}")
        for name in ("documents", "tokens", "response_tokens", "images")
        for value in (-1, 2**63, 10**400, 4.0, 1e300, float("nan"), float("inf"), True, "4", None, [4])
    ]
    + [
        ("files/tokens.bin", -1, "files.tokens.bin"),
        ("files/tokens.bin", 1e3, "files.tokens.bin"),
        ("files", [], "files"),
        ("version", 1.0, "version"),
        ("version", True, "version"),
        ("tokenizer/vocab_size", 2**31, "tokenizer.vocab_size"),
        ("tokenizer/pad_id", 4096, "token 4096 is outside the vocabulary of 4096"),
        ("tokenizer/eos_id", 10**6, "token 1000000 is outside the vocabulary of 4096"),
        ("images/break_token_id", 4096, "token 4096 is outside the vocabulary of 4096"),
        ("images/patch_size", 0, "images.patch_size"),
        ("images/image_size", 2**40, "images.image_size"),
        ("images/rounding", "up", "images.rounding"),
    ],
)
def test_manifests_of_impossible_numbers_are_refused(corpus, place, value, found):
    set_manifest(corpus, place, value)
    check_refused(corpus, rf"corpus\.json is damaged: .*{found}")


def test_other_counts_than_the_files_have_are_refused(corpus):
    for name, file in (("documents", "documents.npy"), ("tokens", "tokens.bin"), ("images", "images.npy")):
        for value in (0, 1, 2**40, 2**63 - 1):
            content = (corpus.path / "corpus.json").read_text()
            set_manifest(corpus, f"counts/{name}", value)
            check_refused(corpus, f"{file}|holds no documents|sums to 3 images")
            (corpus.path / "corpus.json").write_text(content)


@pytest.mark.parametrize("files", [{}, {"../elsewhere": 3}, {"tokens.bin": 1}])
def test_lists_of_other_files_are_refused(corpus, files):
    whole = json.loads((corpus.path / "corpus.json").read_text())["files"]
    set_manifest(corpus, "files", files | whole if "../elsewhere" in files else files)
    check_refused(corpus, r"corpus\.json lists the files")


def test_a_manifest_larger_than_any_is_not_read(corpus):
    os.truncate(corpus.path / "corpus.json", 2**40)
    check_refused(corpus, r"corpus\.json cannot be read: .*1,099,511,627,776 bytes")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*FILES, "corpus.json"])
def test_what_is_no_file_is_refused(corpus, name):
    file = corpus.path / name
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    check_refused(corpus, f"{name} cannot be read: .*it is a pipe")
    file.unlink()
    file.symlink_to("/dev/zero")
    check_refused(corpus, f"{name} cannot be read: .*it is a device")
    file.unlink()
    file.mkdir()
    check_refused(corpus, f"{name} cannot be read: .*[Dd]irectory")
    file.rmdir()
    (corpus.path.parent / "elsewhere").write_bytes(content)
    file.symlink_to(corpus.path.parent / "elsewhere")
    assert len(Corpus.open(corpus.path)) == 4  # a link to a file is one


def header(dtype: np.dtype, shape: str, version: bytes = b"\x01\x00", descr: str | None = None) -> bytes:
    text = f"{{'descr': {descr or repr(dtype.descr)}, 'fortran_order': False, 'shape': {shape}, }}"
    data = text.encode().ljust(501) + b"\n"
    return b"\x93NUMPY" + version + len(data).to_bytes(2 if version[0] == 1 else 4, "little") + data


@pytest.mark.parametrize("name", ["documents.npy", "images.npy"])
def test_headers_of_arrays_are_compared_before_they_are_used(corpus, name):
    table = np.load(corpus.path / name)
    rows, values = len(table), table.tobytes()
    write_file(corpus, name, header(table.dtype, f"({rows},)") + values)
    assert len(Corpus.open(corpus.path)) == 4
    for start, message in (
        (header(table.dtype, f"({rows + 1},)"), "holds"),
        (header(table.dtype, "(1000000000000000,)"), "holds"),
        (header(table.dtype, "(18446744073709551617,)"), "holds"),
        (header(table.dtype, f"({rows}, 1)"), "holds"),
        (header(table.dtype, f"(-{rows},)"), "holds"),
        (header(table.dtype, "()"), "holds"),
        (header(table.dtype, f"({rows},)", descr="'|O'"), "holds"),
        (header(table.dtype, f"({rows},)", descr="'<i8'"), "holds"),
        (header(table.dtype.newbyteorder(">"), f"({rows},)"), "holds"),
        (header(table.dtype, f"({rows},)", version=b"\x03\x00"), "cannot be read: its format is version 3.0"),
        (header(table.dtype, f"({rows},)", version=b"\x02\x00"), "cannot be read: its format is version 2.0"),
        (b"\x93NUMPY\x01\x00\xff\xff", "cannot be read: its header cannot be read"),
        (b"\x93NUMPY\x01\x00\x08\x00(((((((\n", "cannot be read: its header cannot be read"),
        (b"", "cannot be read"),
    ):
        write_file(corpus, name, start + values)
        check_refused(corpus, f"{name} {message}")
    write_file(corpus, name, header(table.dtype, f"({rows},)") + values + b"\0" * table.itemsize)
    check_refused(corpus, rf"{name} has \d+ bytes of values; {rows} rows take")
    write_file(corpus, name, header(table.dtype, f"({rows},)") + values[:-1])
    check_refused(corpus, rf"{name} has \d+ bytes of values; {rows} rows take")


def test_an_index_that_claims_more_than_it_holds_is_refused(corpus):
    content = (corpus.path / "tokens.idx").read_bytes()
    write_file(corpus, "tokens.idx", content + b"\0" * 20)
    check_refused(corpus, r"tokens\.idx has \d+ bytes; the index of 4 documents takes \d+")
    write_file(corpus, "tokens.idx", content[:-8])
    check_refused(corpus, r"tokens\.idx has \d+ bytes; the index of 4 documents takes \d+")
    write_file(corpus, "tokens.idx", struct.pack("<9sQBQQ", content[:9], 1, 4, 2**63, 2**63 + 1) + content[34:])
    check_refused(corpus, r"tokens\.idx begins with .*9223372036854775808")
    write_file(corpus, "tokens.idx", b"MMIDIDX")
    check_refused(corpus, r"tokens\.idx has 7 bytes")


def test_a_sparse_table_is_given_up_at_its_first_row(corpus, monkeypatch):
    """A disk's worth of rows that take no place on the disk."""
    rows = 2**25
    start = header(corpus.documents.dtype, f"({rows},)")
    (corpus.path / "documents.npy").write_bytes(start)
    for name, size in (("documents.npy", len(start) + 32 * rows), ("tokens.bin", 4 * rows), ("responses.bin", rows)):
        os.truncate(corpus.path / name, size)
        set_manifest(corpus, f"files/{name}", size)
    for name in ("documents", "tokens"):
        set_manifest(corpus, f"counts/{name}", rows)
    looked_at, check_rows = [], files_module._check_rows

    def recorded(file, block, first, *rest):
        looked_at.append((first, block.size))
        check_rows(file, block, first, *rest)

    monkeypatch.setattr(files_module, "_check_rows", recorded)
    check_refused(corpus, r"documents\.npy has a row 0 that is impossible")
    assert looked_at == [(0, files_module.ROWS)]


@pytest.mark.parametrize("value", [2, 255])
def test_response_flags_other_than_0_and_1_are_refused_when_they_are_read(corpus, value):
    content = bytearray((corpus.path / "responses.bin").read_bytes())
    content[5] = value
    (corpus.path / "responses.bin").write_bytes(content)
    damaged = Corpus.open(corpus.path)
    assert damaged.responses(0).size == 5 and damaged.responses(1, 1).size
    with pytest.raises(DataError, match=rf"responses\.bin has {value} for a token of document 1"):
        damaged.responses(1)
