"""A checkpoint that a stranger wrote: refused for what is wrong with it, and nothing in it is executed."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import zipfile
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

from megatron_apriel.checkpoint.accepted_entries import COMMON_STATE
from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader, DistributedWeights
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.random_state import random_states, restore_random_states
from megatron_apriel.checkpoint.verify import verify
from megatron_apriel.errors import CheckpointError, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.formats.run_record import read_run_file, run_state
from megatron_apriel.testing.changed_checkpoints import (
    Calls,
    changed_metadata,
    changed_record,
    refresh,
    torch_metadata,
    write_metadata,
)
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

TINY = Architecture.from_preset("tiny")
WEIGHT = "decoder.layers.1.mlp.linear_fc2.weight"
SHARD = "__0_0.distcp"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    source = write_hf_checkpoint(folder / "hf", TINY, dtype="bfloat16")
    convert(plan_conversion(source, Kind.MEGATRON), folder / "step_00000001")
    return folder / "step_00000001"


@pytest.fixture
def path(honest: Path, tmp_path: Path) -> Path:
    copy = tmp_path / honest.name
    for file in honest.rglob("*"):
        target = copy / file.relative_to(honest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            target.write_bytes(file.read_bytes())
    return copy


def entry(metadata: Metadata, key: str = WEIGHT) -> Any:
    return metadata.state_dict_metadata[key]


def place(metadata: Metadata, key: str = WEIGHT) -> Any:
    return next(place for index, place in metadata.storage_data.items() if index.fqn == key)


def index_of(metadata: Metadata, key: str = WEIGHT) -> MetadataIndex:
    return next(index for index in metadata.storage_data if index.fqn == key)


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
    "nowhere": (lambda m: m.storage_data.pop(index_of(m)), f"{WEIGHT} has 1 pieces and 0 places"),
    "no dtype": (lambda m: setattr(entry(m).properties, "dtype", "float32"), f"{WEIGHT} has no dtype"),
    "key": (lambda m: _replace_index(m, fqn=5), "a key is 5, no text"),
    "two places": (
        lambda m: m.storage_data.__setitem__(MetadataIndex(WEIGHT, (0, 0, 0)), place(m)),
        f"{WEIGHT} has 1 pieces and 2 places",
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


def _rewrite(path: Path, key: str, data: bytes) -> None:
    """Put other bytes under ``key``, at the file's end."""
    with changed_metadata(path) as metadata:
        info = place(metadata, key)
        with (path / SHARD).open("ab") as file:
            info.offset, info.length = file.tell(), len(data)
            file.write(data)


def _saved(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"args": 1}], "it is not empty"),
        ({}, "it is not empty"),
        (torch.zeros(2), "it is not empty|it is not plain data"),
        ([{"padding": bytes(20_000)}], "more than 16,384"),
    ],
)
def test_the_common_state_is_empty(path: Path, value: Any, message: str) -> None:
    _rewrite(path, COMMON_STATE, _saved(value))
    with pytest.raises(CheckpointError, match=message):
        DistributedCheckpointReader(path)


def test_the_common_state_executes_nothing(path: Path, tmp_path: Path) -> None:
    _rewrite(path, COMMON_STATE, _saved([Calls(tmp_path / "mark")]))
    with pytest.raises(CheckpointError, match=r"it is not plain data \(UnpicklingError\)") as caught:
        DistributedCheckpointReader(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def _piece(path: Path, **changes: Any) -> bytes:
    """The archive of a weight with other contents."""
    extent = read_metadata(path).tensors[WEIGHT].pieces[0].extent
    whole = (path / SHARD).read_bytes()[extent.offset : extent.end]
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(result, "w") as new:
        for member in old.infolist():
            name = member.filename.partition("/")[2]
            kind = zipfile.ZIP_DEFLATED if name == changes.get("deflated") else zipfile.ZIP_STORED
            new.writestr(member.filename, changes.get(name, old.read(member)), kind)
        new.writestr("archive/padding", bytes(100_000))
    return result.getvalue()


def _shape_pickle(**changes: Any) -> bytes:
    """What torch writes of a tensor beside its numbers, written by hand."""
    shape = changes["shape"]
    values = {"offset": 0, "stride": (shape[-1], 1), "storage": "BFloat16Storage", **changes}

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            kind = getattr(torch, values["storage"])
            return ("storage", kind, "0", "cpu", 1) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            from torch._utils import _rebuild_tensor_v2

            arguments = (Storage(), values["offset"], shape, values["stride"], False)
            return _rebuild_tensor_v2, (*arguments, collections.OrderedDict())

    data = io.BytesIO()
    Pickler(data, protocol=2).dump(Tensor())
    return data.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.pkl": b"N."}, "no tensor at byte"),
        ({"data.pkl": pickle.dumps(Calls(Path("mark")))}, "no tensor at byte .*it asks for"),
        ({"data.pkl": bytes(100_000)}, "its description has 100000 bytes"),
        ({"byteorder": b"big"}, "its numbers are not little-endian"),
        ({"byteorder": b"little" * 9}, "its numbers are not little-endian"),
        ({"shape": (1, 1)}, r"not \[\d+, \d+\] row by row"),
        ({"stride": (1, 64)}, r"not \[\d+, \d+\] row by row"),
        ({"stride": "ab"}, r"not \[\d+, \d+\] row by row"),
        ({"offset": 10**9}, r"not \[\d+, \d+\] row by row"),
        ({"offset": -5}, "begins at number -5"),
        ({"storage": "FloatStorage"}, r"not \[\d+, \d+\] row by row"),
        ({"deflated": "data/0"}, r"not \[\d+, \d+\] row by row"),
        ({"deflated": "data.pkl"}, "its description has"),
    ],
)
def test_a_piece_is_what_its_entry_says(path: Path, changes: dict[str, Any], message: str, monkeypatch: Any) -> None:
    shape = read_metadata(path).tensors[WEIGHT].shape
    if changes.keys() & {"shape", "stride", "offset", "storage"}:
        changes = {"data.pkl": _shape_pickle(**{"shape": shape, "stride": (shape[1], 1), **changes})}
    _rewrite(path, WEIGHT, _piece(path, **changes))
    monkeypatch.setattr(DistributedWeights, "verify", lambda self: None)
    source = DistributedCheckpointReader(path)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=message):
        source.read(name, 0, source.tensors[name].rows)


def test_the_helper_writes_what_torch_writes(path: Path) -> None:
    expected = DistributedCheckpointReader(path)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    rows = expected.tensors[name].rows
    numbers = expected.read(name, 0, rows)
    shape = read_metadata(path).tensors[WEIGHT].shape
    _rewrite(path, WEIGHT, _piece(path, **{"data.pkl": _shape_pickle(shape=shape)}))
    assert (DistributedCheckpointReader(path).read(name, 0, rows) == numbers).all()


@pytest.mark.parametrize("member", ["data/0", "version"])
def test_checking_reads_no_more_than_is_there(path: Path, member: str) -> None:
    _rewrite(path, WEIGHT, _piece(path, deflated=member))
    with pytest.raises(CheckpointError, match="a member is compressed"):
        verify(path, read_metadata(path))


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "outside": (lambda r: r["files"].__setitem__("../a", 1), "is no file in the checkpoint"),
    "absolute": (lambda r: r["files"].__setitem__("/etc/hostname", 1), "is no file in the checkpoint"),
    "digest outside": (lambda r: r["sha256"].__setitem__("/etc/hostname", "0"), "is no file in the checkpoint"),
    "itself": (lambda r: r["files"].__setitem__(".", 1), "is no file in the checkpoint"),
    "zero byte": (lambda r: r["files"].__setitem__("a\0b", 1), "is no file in the checkpoint"),
    "unlisted": (lambda r: r["sha256"].__setitem__("a", "0"), "digests of files that it does not list"),
    "negative": (lambda r: r["files"].__setitem__("run.json", -1), "files.run.json: "),
    "step": (lambda r: r.__setitem__("step", -1), "step: "),
    "step as text": (lambda r: r.__setitem__("step", "1"), "step: "),
    "endless step": (lambda r: r.__setitem__("step", 10**40), "step: "),
    "layout": (lambda r: r.__setitem__("layout", {"tensor": 0}), "layout."),
    "groups": (lambda r: r.__setitem__("optimizer_groups", 5), "optimizer_groups: "),
    "rate": (lambda r: r.__setitem__("optimizer_groups", [{"lr": "a"}]), "optimizer_groups.0.lr: "),
    "nested": (lambda r: r.__setitem__("optimizer_groups", [{"x": {"a": 1}}]), "optimizer_groups.0.x"),
    "unknown": (lambda r: r.__setitem__("more", 1), "more: "),
    "extra": (lambda r: r.__setitem__("extra", []), "extra: "),
    "format": (lambda r: r.__setitem__("format", 9), "is of format 9"),
    "no format": (lambda r: r.pop("format"), "format: "),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_cannot_be_is_refused(path: Path, kind: str) -> None:
    change, message = RECORDS[kind]
    with changed_record(path) as record:
        change(record)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_run_file(path)
    assert "run.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "1" * 10_000, '{"format": 1e400}', "[" * 100_000, '{"format": NaN}', "\xff"]
)
def test_a_record_that_is_none(path: Path, text: str) -> None:
    (path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        read_run_file(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "nothing of a run"),
        ({"config": {}, "sequences": -1}, r"extra\.sequences"),
        ({"config": [], "sequences": 1}, r"extra\.config"),
        ({"config": {"mixture": [1]}, "sequences": 1}, r"extra\.config\.mixture\.0"),
        ({"config": {}, "sequences": 1, "corpora": [None]}, r"extra\.corpora\.0"),
    ],
)
def test_a_run_state_that_cannot_be(path: Path, state: dict[str, Any], message: str) -> None:
    with changed_record(path) as record:
        record["extra"] = state
    with pytest.raises(CheckpointError, match=message):
        run_state(path, read_run_file(path))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([624]), 625)),
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([624]), -1)),
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([3]), 2**32)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([0]), 9)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([5]), 2**40)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([625]), 700)),
        ("python_gauss", lambda state: state.fill_(float("nan"))),
        ("torch", lambda state: state.fill_(255)),
        ("torch", lambda state: state.resize_(5)),
    ],
)
def test_random_states_of_no_generator(name: str, change: Callable[[torch.Tensor], Any]) -> None:
    states = {key: state.clone() for key, state in random_states().items()}
    change(states[name])
    with pytest.raises(CheckpointError, match="of no generator"):
        restore_random_states(states)


def test_pipes_in_a_checkpoint_are_not_waited_for(path: Path) -> None:
    for name in (SHARD, ".metadata", "run.json"):
        (path / name).rename(path / f"{name}.away")
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError):
            read_metadata(path) if name != "run.json" else read_run_file(path)
        (path / name).unlink()
        (path / f"{name}.away").rename(path / name)
    refresh(path)
    assert json.loads((path / "run.json").read_text())["files"]
    read_metadata(path)


def test_command_lines_forbid_unrestricted_loading(tmp_path: Path) -> None:
    """Also where a library asks for it."""
    torch.save(Calls(tmp_path / "mark"), tmp_path / "file.pt")

    def main() -> None:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "file.pt", weights_only=False)

    assert run_command(main) == 0
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "file.pt", weights_only=False)  # outside of a command line as before
    assert (tmp_path / "mark").exists()


def test_an_unchanged_copy_is_read(path: Path) -> None:
    write_metadata(path, torch_metadata(path))
    source = DistributedCheckpointReader(path)
    assert all(source.read(name, 0, spec.rows).size for name, spec in source.tensors.items())
