"""The directory of a checkpoint that a stranger wrote: refused for what is wrong with it, and nothing is executed."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as torch_metadata_classes
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)
from untrusted import SHARD, WEIGHT, entry, index_of, place

from megatron_apriel.checkpoint.accepted_entries import COMMON_STATE
from megatron_apriel.checkpoint.convert import plan_conversion
from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.testing.changed_checkpoints import (
    Calls,
    changed_metadata,
    torch_metadata,
    write_metadata,
)


def test_every_piece_is_where_torch_says(path: Path) -> None:
    metadata, contents = torch_metadata(path), read_metadata(path)
    assert contents.objects.keys() | contents.tensors.keys() == metadata.state_dict_metadata.keys()
    for index, info in metadata.storage_data.items():
        if index.fqn in contents.tensors:
            tensor, described = contents.tensors[index.fqn], entry(metadata, index.fqn)
            assert (tensor.shape, tensor.dtype) == (tuple(described.size), described.properties.dtype)
            (piece,) = (piece for piece in tensor.pieces if piece.offsets == tuple(index.offset))
            assert piece.sizes == tuple(described.chunks[index.index].sizes)
            assert piece.extent.file == info.relative_path
            assert (piece.extent.offset, piece.extent.length) == (info.offset, info.length)


def test_nothing_in_the_directory_is_executed(path: Path, tmp_path: Path) -> None:
    with changed_metadata(path) as metadata:
        metadata.planner_data = Calls(tmp_path / "mark")
    torch_metadata(path)
    (tmp_path / "mark").unlink()  # torch's way of reading calls it
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read: it asks for (pathlib\S*|builtins)\."):
        read_metadata(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["Metadata", "MetadataIndex", "TensorProperties"])
def test_the_directory_changes_no_class(path: Path, name: str) -> None:
    """BUILD with a pair sets attributes, of a class too."""
    before = dict(vars(getattr(torch_metadata_classes, name)))
    module = "torch.distributed.checkpoint.metadata"
    build = b"c" + f"{module}\n{name}\n".encode() + pickle.dumps((None, {"__init__": 1}), 0)[:-1] + b"b."
    (path / ".metadata").write_bytes(build)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_metadata(path)
    assert dict(vars(getattr(torch_metadata_classes, name))) == before


def _replace_index(metadata: Metadata, **fields: Any) -> None:
    old = index_of(metadata)
    values = {"fqn": old.fqn, "offset": old.offset, "index": old.index, **fields}
    info = metadata.storage_data.pop(old)
    new = MetadataIndex("x")
    for name, value in values.items():
        object.__setattr__(new, name, value)
    metadata.storage_data[new] = info


def _two_pieces(metadata: Metadata, second: tuple[int, int], rows: int) -> None:
    """Describe a tensor of [64, 32] by the upper half of its rows and a second piece."""
    described, info = entry(metadata), place(metadata)
    half, width = described.size[0] // 2, described.size[1]
    described.chunks = [
        ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((half, width))),
        ChunkStorageMetadata(torch.Size(second), torch.Size((rows, width))),
    ]
    old = index_of(metadata)
    del metadata.storage_data[old]
    length = info.length // 2
    for offsets, begin in (((0, 0), info.offset), (second, info.offset + length)):
        metadata.storage_data[MetadataIndex(WEIGHT, torch.Size(offsets))] = type(info)(SHARD, begin, length)


CONTRADICTIONS: dict[str, tuple[Callable[[Metadata], Any], str]] = {
    "nothing": (lambda m: setattr(m, "state_dict_metadata", None), "tensors and places are"),
    "no places": (lambda m: setattr(m, "storage_data", None), "tensors and places are"),
    "places of nothing": (lambda m: m.state_dict_metadata.pop(WEIGHT), f"{WEIGHT} has a place and is not described"),
    "nowhere": (lambda m: m.storage_data.pop(index_of(m)), f"{WEIGHT} has 1 piece and 0 places"),
    "no dtype": (lambda m: setattr(entry(m).properties, "dtype", "float32"), f"{WEIGHT} has no dtype"),
    "key": (lambda m: _replace_index(m, fqn=5), "a key is 5, no text"),
    "two places": (
        lambda m: m.storage_data.__setitem__(MetadataIndex(WEIGHT, (0, 0, 0)), place(m)),
        f"{WEIGHT} has 1 piece and 2 places",
    ),
    "offset": (lambda m: _replace_index(m, offset=torch.Size((0, 7))), "has no place"),
    "offset of another kind": (lambda m: _replace_index(m, offset=(0, 0)), "no sizes"),
    "dimensions": (lambda m: setattr(entry(m), "size", torch.Size((1, 2, 3))), "has 3 dimensions"),
    "no dimension": (lambda m: setattr(entry(m), "size", torch.Size(())), "has 0 dimensions"),
    "larger": (lambda m: setattr(entry(m), "size", torch.Size((2**40, 2**20))), "do not make up its shape"),
    "huge": (
        lambda m: (
            setattr(entry(m), "size", torch.Size((2**40, 2**20))),
            setattr(entry(m).chunks[0], "sizes", torch.Size((2**40, 2**20))),
        ),
        r"has \d+ numbers in \d+ bytes",
    ),
    "beyond": (lambda m: setattr(entry(m).chunks[0], "offsets", torch.Size((1, 0))), "has no place"),
    "negative": (lambda m: setattr(entry(m).chunks[0], "sizes", torch.Size((-1, 5))), "is -1, no number from 0 on"),
    "overlap": (lambda m: _two_pieces(m, (1, 0), entry(m).size[0] // 2), "overlap in row 1"),
    "gap": (lambda m: _two_pieces(m, (entry(m).size[0] // 2, 0), 1), "do not make up its shape"),
    "out of the rows": (
        lambda m: _two_pieces(m, (entry(m).size[0] // 2 + 1, 0), entry(m).size[0] // 2),
        "reaches beyond its shape",
    ),
    "chunks": (lambda m: setattr(entry(m), "chunks", {}), "in pieces are written"),
    "file outside": (lambda m: setattr(place(m), "relative_path", f"../{SHARD}"), "which is not a file in it"),
    "absolute file": (lambda m: setattr(place(m), "relative_path", f"/tmp/{SHARD}"), "which is not a file in it"),
    "file of another kind": (lambda m: setattr(place(m), "relative_path", "run.json"), "which is not a file in it"),
    "no file": (lambda m: setattr(place(m), "relative_path", 5), "is 5, no text"),
    "absent file": (lambda m: setattr(place(m), "relative_path", "__9_9.distcp"), "__9_9.distcp is missing"),
    "no offset": (lambda m: setattr(place(m), "offset", None), "a _StorageInfo has no offset"),
    "float offset": (lambda m: setattr(place(m), "offset", 1.0), r"is 1\.0, no number from 0 on"),
    "truth as offset": (lambda m: setattr(place(m), "offset", True), "is True, no number from 0 on"),
    "endless offset": (lambda m: setattr(place(m), "offset", 1 << 100_000), "an integer of 100001 bits"),
    "length": (lambda m: setattr(place(m), "length", 1 << 40), "should lie at"),
    "compressed": (lambda m: setattr(place(m), "transform_descriptors", ["zstd"]), "is compressed"),
    "shared bytes": (
        lambda m: setattr(place(m, "decoder.final_layernorm.weight"), "offset", place(m).offset),
        f"{SHARD}",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_directory_that_contradicts_itself_is_refused(path: Path, kind: str) -> None:
    change, message = CONTRADICTIONS[kind]
    with changed_metadata(path) as metadata:
        change(metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)


def test_two_entries_may_not_share_bytes(path: Path) -> None:
    """Else a few bytes could be read, and checked, a hundred thousand times."""
    with changed_metadata(path) as metadata:
        other = place(metadata, "decoder.layers.2.mlp.linear_fc2.weight")
        other.offset, other.length = place(metadata).offset, place(metadata).length
    with pytest.raises(CheckpointError, match=f"share bytes of {SHARD}"):
        read_metadata(path)


@pytest.mark.parametrize("data", [b"", b"\x80", b"N.", b"]" * 100_000, pickle.dumps(collections.OrderedDict(a=1))])
def test_what_is_no_directory(path: Path, data: bytes) -> None:
    (path / ".metadata").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        read_metadata(path)


def _as_bytes(key: str) -> Callable[[Metadata], None]:
    """Describe a tensor as an entry of bytes, which torch's loader would unpickle without restriction."""

    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        index = index_of(metadata, key)
        metadata.storage_data[MetadataIndex(key)] = metadata.storage_data.pop(index)

    return change


def _another(key: str, **changes: Any) -> Callable[[Metadata], None]:
    """Add an entry at the end of the file, which is made longer for it."""

    def change(metadata: Metadata) -> None:
        described, info = entry(metadata), place(metadata)
        metadata.state_dict_metadata[key] = BytesStorageMetadata() if changes.get("bytes") else described
        end = max(info.offset + info.length for info in metadata.storage_data.values())
        index = MetadataIndex(key) if changes.get("bytes") else MetadataIndex(key, (0, 0))
        metadata.storage_data[index] = type(info)(SHARD, end, info.length)

    return change


def _without(key: str) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        del metadata.state_dict_metadata[key], metadata.storage_data[index_of(metadata, key)]

    return change


ENTRIES: dict[str, tuple[Callable[[Metadata], None], str]] = {
    "a weight as bytes": (_as_bytes(WEIGHT), rf"1 missing \({WEIGHT}\)"),
    "more bytes": (_another("more/shard_0_1", bytes=True), "holds more/shard_0_1, which is refused: the one entry"),
    "a moment as bytes": (
        _another(f"optimizer.state.exp_avg.{WEIGHT}", bytes=True),
        f"holds optimizer.state.exp_avg.{WEIGHT}, which is refused",
    ),
    "another tensor": (_another("decoder.secret"), r"1 left over \(decoder.secret\)"),
    "another state": (_another(f"optimizer.state.other.{WEIGHT}"), "no optimizer of this project has such a state"),
    "a state of nothing": (_another("optimizer.state.param.nothing"), "no optimizer of this project has such a state"),
    "a state of another shape": (
        _another("optimizer.state.param.decoder.final_layernorm.weight"),
        r"decoder.final_layernorm.weight has \[",
    ),
    "random numbers": (_another("random.torch"), r"holds random.torch, which is refused: it has shape .*bfloat16"),
    "no common state": (_without(COMMON_STATE), "holds none at all, which is refused: the one entry"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_only_what_this_project_writes_is_accepted(path: Path, kind: str) -> None:
    change, message = ENTRIES[kind]
    with (path / SHARD).open("ab") as file:
        file.write(bytes(100_000))
    with changed_metadata(path) as metadata:
        change(metadata)
    for reading in (lambda: plan_conversion(path, Kind.HF), lambda: DistributedCheckpointReader(path)):
        with pytest.raises(CheckpointError, match=message):
            reading()


def test_an_unchanged_copy_is_read(path: Path) -> None:
    write_metadata(path, torch_metadata(path))
    source = DistributedCheckpointReader(path)
    assert all(source.read(name, 0, spec.rows).size for name, spec in source.tensors.items())
