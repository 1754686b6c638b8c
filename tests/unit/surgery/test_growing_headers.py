"""Headers and indexes that ask for more than their files hold: refused before memory or time is spent on it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.tensor_files import MOST_HEADER_BYTES, TensorDirectory, read_header
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.testing.limits import check_cost, measured, refused_within
from megatron_apriel.testing.plain_safetensors import write_model

LARGEST = 2**63 - 1


def with_header(header: bytes | dict[str, Any], data: int = 4, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def of_shape(shape: list[Any], offsets: list[int] | None = None, dtype: str = "F64") -> bytes:
    return with_header({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets or [0, 4]}})


GROWING = {
    "dimensions": (of_shape([LARGEST] * 300_000), "300,000 dimensions, more than 32"),
    "ones": (of_shape([1] * 33, [0, 8]), "33 dimensions, more than 32"),
    "product": (of_shape([LARGEST] * 32), "bytes and was given bytes 0 to 4"),
    "hidden by a zero": (of_shape([LARGEST, LARGEST, 0]), "takes 0 bytes and was given bytes 0 to 4"),
    "beyond 64 bits": (of_shape([2**64]), "which is no list of numbers of 64 bits"),
    "digits": (of_shape([int("9" * 4000)]), "which is no list of numbers of 64 bits"),
    "too many digits": (with_header(b'{"a": ' + b"9" * 6_000_000 + b"}"), "its JSON cannot be read: Exceeds"),
    "offsets": (of_shape([4], [0, LARGEST], "U8"), "takes 4 bytes and was given bytes 0 to"),
    "wrapping offsets": (of_shape([4], [2**64 - 4, 2**64], "U8"), "which is no list of numbers of 64 bits"),
    "fractions": (of_shape([4.0], dtype="U8"), "which is no list of numbers of 64 bits"),
    "truth": (of_shape([True] * 4, dtype="U8"), "which is no list of numbers of 64 bits"),
    "deep": (with_header(b'{"a":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}"), "more than 50 deep"),
    "wide": (with_header(b'{"a":[' + b",".join([b"[]"] * 2_700_000) + b"]}"), "is not described by"),
    "metadata": (with_header(b'{"__metadata__":{"a":[' + b"0," * 3_000_000 + b"0]}}"), "not a table of strings"),
    "repeated": (with_header(b"{" + b",".join([b'"a":0'] * 1_000_000) + b"}"), "'a' is there twice"),
    "overlapping": (
        with_header({str(n): {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in range(50_000)}),
        "it overlaps the tensor before it",
    ),
    "length": (with_header(b"{}", length=2**63), "its header would be 9,223,372,036,854,775,808 bytes long"),
}


@pytest.mark.parametrize("kind", GROWING)
def test_growing_headers(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content, message = GROWING[kind]
    file.write_bytes(content)
    refusal = refused_within(read_header, file)
    assert refusal.startswith("CheckpointError: ") and message in refusal and str(file) in refusal
    assert len(refusal) < 2000


def test_a_sparse_file_is_not_read_for_its_header(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", MOST_HEADER_BYTES + 1))
        stream.truncate(2**40)
    assert f"{MOST_HEADER_BYTES + 1:,} bytes long, in a file of 1,099,511,627,776" in refused_within(read_header, file)


def test_the_largest_header_costs_what_it_says(tmp_path: Path) -> None:
    tensors = (MOST_HEADER_BYTES - 2) // 59
    text = ",".join(f'"{n:07}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(tensors))
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header(f"{{{text}}}".encode(), 0))
    check_cost(measured(read_header, file), seconds=6)


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_weights_that_are_no_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "directory": os.mkdir}
    make[kind](file)
    for read in (lambda: read_header(file), lambda: TensorDirectory.open(tmp_path)):
        assert refused_within(read).startswith("CheckpointError: ")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../outside.safetensors", "which is no file name"),
        ("/etc/passwd", "which is no file name"),
        ("..", "which is no file name"),
        ("", "which is no file name"),
        ("a\0b", r"names a\x00b, which"),
        ("x" * 5000, "which"),
        ("\ud800", "is half of a letter"),
        (7, "lies in 7, which is no file name"),
        (["model.safetensors"], "which is no file name"),
        ("\x1b[2J", r"names \x1b[2J, which"),
        ("pipe", "pipe cannot be read: it is a pipe"),
    ],
)
def test_an_index_names_files_of_its_directory(place: Any, message: str, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "model", text_tensors(2), text_config(2), files=2)
    os.mkfifo(directory / "pipe")
    index = directory / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["more"] = place
    index.write_text(json.dumps(value))
    refusal = refused_within(GivenModel.open, directory)
    assert refusal.startswith("CheckpointError: ") and message in refusal and len(refusal) < 1000


def test_an_index_of_many_files_that_are_not_there_is_cut(tmp_path: Path) -> None:
    weight_map = {f"{number}": f"model-{number}.safetensors" for number in range(100_000)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refusal = refused_within(TensorDirectory.open, tmp_path)
    assert "and 99,995 more, which" in refusal and len(refusal) < 1000


def test_names_in_a_header_are_printed_harmlessly(tmp_path: Path) -> None:
    header = {"a\x1b[2J\n": {"dtype": "U8", "shape": [4], "data_offsets": [0, 3]}}
    (tmp_path / "model.safetensors").write_bytes(with_header(header))
    with pytest.raises(CheckpointError) as caught:
        TensorDirectory.open(tmp_path)
    assert r"a\x1b[2J\n (U8 [4]) takes 4 bytes" in str(caught.value)
