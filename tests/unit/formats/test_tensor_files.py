"""Safetensors by byte ranges: damaged files are refused."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.tensor_files import TensorDirectory, read_header
from megatron_apriel.testing.plain_safetensors import write_file, write_model

PAIR = {"a": ("F32", np.arange(6, dtype="<f4").reshape(2, 3)), "b": ("U8", np.arange(5, dtype="u1"))}


def raw_file(file: Path, header: Any, data: int, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return file


def field(begin: int, end: int, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_entries_are_byte_ranges(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", PAIR)
    entries = TensorDirectory.open(tmp_path).entries
    assert (entries["a"].dtype, entries["a"].shape, entries["a"].size, entries["a"].rows) == ("F32", (2, 3), 24, 2)
    for name, (_, numbers) in PAIR.items():
        assert b"".join(bytes(piece) for piece in entries[name].pieces(limit=5)) == numbers.tobytes()
    assert b"".join(bytes(piece) for piece in entries["a"].pieces(1, 2)) == PAIR["a"][1][1].tobytes()


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    tensors = {"none": ("F32", np.zeros((0, 4), "<f4")), "one": ("F32", np.float32(3).reshape(()))}
    write_file(tmp_path / "model.safetensors", tensors)
    entries = TensorDirectory.open(tmp_path).entries
    assert [bytes(piece) for piece in entries["none"].pieces()] == []
    assert [bytes(piece) for piece in entries["one"].pieces()] == [np.float32(3).tobytes()]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", 0, "its JSON cannot be read"),
        (b"\xff\xfe", 0, "its JSON cannot be read"),
        (b"[" * 100_000, 0, "its JSON cannot be read"),
        (b"[1]", 0, "its JSON is a list, not an object"),
        (b'{"a": {"dtype": "U8", "dtype": "U8"}}', 0, "'dtype' is there twice"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ is not a table of strings"),
        ({"a": {"dtype": "U8", "shape": [1]}}, 1, "a is not described by dtype, shape and data_offsets"),
        ({"a": field(0, 4, "F4", [8])}, 4, "a has dtype 'F4', which is none of"),
        ({"a": field(0, 4, ["F4"], [8])}, 4, r"a has dtype \['F4'\]"),
        ({"a": field(0, 4, "U8", [-4])}, 4, r"a has shape \[-4\]"),
        ({"a": field(0, 4, "U8", [True])}, 4, r"a has shape \[True\]"),
        ({"a": {**field(0, 4), "data_offsets": [0, 4, 8]}}, 4, "which is no pair"),
        ({"a": field(0, 4, "F32", [2])}, 4, r"a \(F32 \[2\]\) takes 8 bytes and was given bytes 0 to 4"),
        ({"a": field(4, 0, "U8", [4])}, 4, "takes 4 bytes and was given bytes 4 to 0"),
        ({"a": field(0, 4), "b": field(2, 6)}, 6, "b begins at byte .*: it overlaps the tensor before it"),
        ({"a": field(0, 4), "b": field(6, 8)}, 8, "b begins at byte .*: it leaves a gap before it"),
        ({"a": field(0, 10**18)}, 4, "it is truncated"),
        ({"a": field(0, 4)}, 3, "it is truncated"),
        ({"a": field(0, 4)}, 5, "it is followed by something else"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, data: int, message: str) -> None:
    file = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_header_that_does_not_fit(tmp_path: Path) -> None:
    for length in (100, 2**63):
        with pytest.raises(CheckpointError, match=rf"its header would be {length:,} bytes long, in a file of 10 bytes"):
            read_header(raw_file(tmp_path / "model.safetensors", b"{}", 0, length))
    (tmp_path / "model.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="in a file of 3 bytes"):
        read_header(tmp_path / "model.safetensors")


def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path) -> None:
    """As torch's distributed checkpoint leaves it; findings/dcp_number_beside_tensors.sh."""
    import torch
    from torch.distributed import checkpoint

    state = {"w": torch.ones(2), "step": 7}
    checkpoint.save(state, storage_writer=checkpoint.HuggingFaceStorageWriter(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    with pytest.raises(CheckpointError, match=r"is no safetensors file: it begins as torch\.save writes") as caught:
        read_header(file)
    assert "Save the tensors alone" in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_file(file, PAIR)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            read_header(file)


def change_index(directory: Path, change: Any) -> None:
    index = directory / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    change(value)
    index.write_text(json.dumps(value))


def test_disagreeing_index(tmp_path: Path) -> None:
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]

    def opened(name: str, change: Any) -> None:
        directory = write_model(tmp_path / name, PAIR, {}, files=2)
        change_index(directory, change)
        TensorDirectory.open(directory)

    opened("good", lambda index: None)
    for name, change, message in (
        ("file", lambda index: index["weight_map"].update(c="model-3.safetensors"), "names model-3.safetensors, which"),
        ("tensor", lambda index: index["weight_map"].update(c=files[0]), f"{files[0]} lacks c, which"),
        ("unnamed", lambda index: index["weight_map"].pop("a"), r"has model-00001.*does not name"),
        (
            "moved",
            lambda index: index["weight_map"].update(a=files[1], b=files[0]),
            f"has a, which .* places in {files[1]}",
        ),
        ("path", lambda index: index["weight_map"].update(a="../a.safetensors"), "which is no file name"),
        ("number", lambda index: index["weight_map"].update(a=1), "which is no file name"),
        ("empty", lambda index: index.pop("weight_map"), "it has no weight_map"),
    ):
        with pytest.raises(CheckpointError, match=message):
            opened(name, change)


def test_tensor_in_two_files_and_unnamed_tensor(tmp_path: Path) -> None:
    directory = write_model(tmp_path, PAIR, {}, files=2)
    write_file(directory / "model-00002-of-00002.safetensors", PAIR)
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors has a, which .* places in model-00001"):
        TensorDirectory.open(directory)
    write_file(directory / "model-00002-of-00002.safetensors", {"b": PAIR["b"], "c": PAIR["b"]})
    with pytest.raises(CheckpointError, match=r"has c, which .* does not name"):
        TensorDirectory.open(directory)


def test_directories_that_hold_no_one_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent does not exist"):
        TensorDirectory.open(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights that were pickled by torch \(pytorch_model.bin"):
        TensorDirectory.open(tmp_path)
    write_file(tmp_path / "model-00001-of-00002.safetensors", PAIR)
    with pytest.raises(CheckpointError, match=r"and no model\.safetensors\.index\.json"):
        TensorDirectory.open(tmp_path)
    write_model(tmp_path / "both", PAIR, {}, files=2)
    write_file(tmp_path / "both" / "model.safetensors", PAIR)
    with pytest.raises(CheckpointError, match=r"has model\.safetensors, which .* does not name"):
        TensorDirectory.open(tmp_path / "both")


def test_links_of_a_download_cache(tmp_path: Path) -> None:
    """A snapshot's files are links to blobs; where one was not downloaded, its link leads nowhere."""
    blobs = write_model(tmp_path / "blobs", PAIR, {}, files=2)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert TensorDirectory.open(snapshot).entries.keys() == PAIR.keys()
    (blobs / "model-00002-of-00002.safetensors").unlink()
    message = r"model-00002-of-00002\.safetensors is a link to \.\./blobs/model-.*does not exist"
    with pytest.raises(CheckpointError, match=message):
        TensorDirectory.open(snapshot)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.safetensors").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to gone, which does not exist"):
        TensorDirectory.open(tmp_path / "one")


def test_pieces_are_full_where_a_read_gives_less_than_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files compared piece by piece may lie on different file systems, whose reads end at different places."""

    class Slow(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7]) or 0

    file = raw_file(tmp_path / "model.safetensors", {"a": field(0, 50)}, 50)
    entry = read_header(file)["a"]
    monkeypatch.setattr(Path, "open", lambda path, *mode, **options: Slow(path))
    assert [len(piece) for piece in entry.pieces(limit=20)] == [20, 20, 10]


def replace(file: Path) -> None:
    file.with_name("new").write_bytes(file.read_bytes())
    file.with_name("new").replace(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": replace,
    "written over": lambda file: file.write_bytes(file.read_bytes()),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_changed_while_it_is_read(change: str, tmp_path: Path) -> None:
    file = raw_file(tmp_path / "model.safetensors", {"a": field(0, 50), "b": field(50, 60)}, 60)
    os.utime(file, (1e9, 1e9))  # so that the system's clock, which may tick rarely, has gone on
    entries = read_header(file)
    kept, pieces = entries["b"].preceding(), entries["a"].pieces(limit=20)
    next(pieces)
    CHANGES[change](file)
    for name, read in {
        "a": lambda: list(pieces) and list(entries["a"].pieces()),
        "b": lambda: entries["b"].read_into(memoryview(bytearray(10)), 0, 10),
        "a ": lambda: entries["a"].preceding(),
    }.items():
        with pytest.raises(CheckpointError, match=rf"model\.safetensors was changed while {name.strip()} was read"):
            read()
    assert bytes(kept) == file.read_bytes()[: entries["b"].offset]
