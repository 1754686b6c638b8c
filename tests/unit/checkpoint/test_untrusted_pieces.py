"""Pieces of a checkpoint that a stranger wrote: each is what its entry says, or refused before it is read."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from untrusted import SHARD, WEIGHT, rewrite, saved

from megatron_apriel.checkpoint.accepted_entries import COMMON_STATE
from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader, DistributedWeights
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.verify import verify
from megatron_apriel.errors import CheckpointError
from megatron_apriel.testing.changed_checkpoints import (
    Calls,
)


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
    rewrite(path, COMMON_STATE, saved(value))
    with pytest.raises(CheckpointError, match=message):
        DistributedCheckpointReader(path)


def test_the_common_state_executes_nothing(path: Path, tmp_path: Path) -> None:
    rewrite(path, COMMON_STATE, saved([Calls(tmp_path / "mark")]))
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
    rewrite(path, WEIGHT, _piece(path, **changes))
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
    rewrite(path, WEIGHT, _piece(path, **{"data.pkl": _shape_pickle(shape=shape)}))
    assert (DistributedCheckpointReader(path).read(name, 0, rows) == numbers).all()


@pytest.mark.parametrize("member", ["data/0", "version"])
def test_checking_reads_no_more_than_is_there(path: Path, member: str) -> None:
    rewrite(path, WEIGHT, _piece(path, deflated=member))
    with pytest.raises(CheckpointError, match="a member is compressed"):
        verify(path, read_metadata(path))
