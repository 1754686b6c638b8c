"""Files of tensors: cut as planned, read back by others, hashed while they are written."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.errors import CheckpointError, OutputError
from megatron_apriel.formats.tensor_files import TensorDirectory, TensorSpec
from megatron_apriel.outputs import whole_directory
from megatron_apriel.surgery import direct_file as module
from megatron_apriel.surgery.shards import plan_shards, write_tensors
from megatron_apriel.testing.plain_safetensors import read_model

PAIR = {"a": ("F32", np.arange(6, dtype="<f4").reshape(2, 3)), "b": ("U8", np.arange(5, dtype="u1"))}


def test_shards_fill_in_order() -> None:
    tensors = [TensorSpec(name, "U8", (size,)) for name, size in (("a", 4), ("b", 4), ("c", 20), ("d", 0), ("e", 3))]
    shards = plan_shards(tensors, 8)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [["a", "b"], ["c"], ["d", "e"]]
    assert shards[1].file_name == "model-00002-of-00003.safetensors"
    assert [shard.file_name for shard in plan_shards(tensors, None, "consolidated")] == ["consolidated.safetensors"]
    with pytest.raises(CheckpointError, match="a would be written twice"):
        plan_shards([tensors[0], tensors[0]], None)
    with pytest.raises(CheckpointError, match="no tensors"):
        plan_shards([], None)


@pytest.mark.parametrize("limit", [10, None])
def test_what_is_written_is_read_by_the_reference(tmp_path: Path, limit: int | None) -> None:
    from safetensors import safe_open

    tensors = {**PAIR, "empty": ("F16", np.zeros((0, 2), "<f2")), "ä": ("F64", np.float64([1.5]))}
    specs = [TensorSpec(name, dtype, numbers.shape) for name, (dtype, numbers) in tensors.items()]
    shards = plan_shards(specs, limit)
    hashes = write_tensors(tmp_path, shards, lambda spec, _: [memoryview(tensors[spec.name][1])])
    assert hashes.keys() == {path.name for path in tmp_path.iterdir()}
    for shard in shards:
        with safe_open(tmp_path / shard.file_name, framework="numpy") as reference:
            assert reference.metadata() == {"format": "pt"}
            for spec in shard.tensors:
                np.testing.assert_array_equal(reference.get_tensor(spec.name), tensors[spec.name][1])
    assert TensorDirectory.open(tmp_path).entries.keys() == tensors.keys() == read_model(tmp_path).keys()


def test_wrong_number_of_bytes(tmp_path: Path) -> None:
    shards = plan_shards([TensorSpec("a", "F32", (2,))], None)
    with pytest.raises(CheckpointError, match=r"a: 4 bytes were given for F32 \[2\], which takes 8"):
        write_tensors(tmp_path, shards, lambda spec, _: [b"1234"])


def pieces(size: int, count: int) -> Iterator[bytes]:
    yield from (bytes([number]) * size for number in range(count))


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    specs = [TensorSpec(name, "U8", (70_000 * 40,)) for name in "abcdef"]
    hashes = write_tensors(tmp_path, plan_shards(specs, 6_000_000), lambda spec, _: pieces(70_000, 40))
    assert len(hashes) == 4
    for name, value in hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == value
    assert read_model(tmp_path)["f"][2] == b"".join(pieces(70_000, 40))


@pytest.mark.parametrize("place", [0, 1, 17])
def test_a_disk_that_fails_in_the_writing_thread(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 2**20)
    write, calls = module._write, []

    def failing(stream: Any, piece: memoryview) -> None:
        calls.append(threading.current_thread())
        if len(calls) > place:
            raise OSError(errno.EIO, "Input/output error")
        write(stream, piece)

    monkeypatch.setattr(module, "_write", failing)
    before = set(threading.enumerate())
    plan = plan_shards([TensorSpec("a", "U8", (2**20 * 100,))], None)
    with (
        pytest.raises(OutputError, match="result could not be written: Input/output error"),
        whole_directory(tmp_path / "result") as partial,
    ):
        write_tensors(partial, plan, lambda spec, _: pieces(2**20, 100))
    assert threading.current_thread() not in calls
    assert len(calls) == place + 1, "it was written to after it had failed"
    assert not set(threading.enumerate()) - before
    assert list(tmp_path.iterdir()) == []
