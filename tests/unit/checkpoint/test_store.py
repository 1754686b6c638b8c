"""What stays on disk, what is read back, and what a damaged or hostile checkpoint does: says so, and nothing else."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import alone
from torch.distributed.checkpoint import CheckpointException

from megatron_apriel.checkpoint import store as store_module
from megatron_apriel.checkpoint.background_save import first_failure
from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader, DistributedWeights
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.checkpoint.metadata import Contents, Extent, Piece, StoredTensor, read_metadata
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.checkpoint.verify import verify
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.config.retention import steps_to_keep
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise
from megatron_apriel.formats.run_directory import checkpoint_path, partial_of
from megatron_apriel.formats.run_record import read_run_file
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.changed_checkpoints import torch_metadata, write_metadata
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

TINY = Architecture.from_preset("tiny")
ALL = KeepPolicy(policy="all")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("store") / "hf", TINY, dtype="bfloat16")


@pytest.fixture
def store(source: Path, tmp_path: Path) -> CheckpointStore:
    """Three checkpoints of weights only."""
    for step in (10, 20, 30):
        convert(plan_conversion(source, Kind.MEGATRON), tmp_path / "checkpoints" / f"step_{step:08d}")
    return CheckpointStore(tmp_path / "checkpoints", ALL, 30)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_checkpoint_that_is_saved_again_is_replaced(
    atomic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at every moment there is one, where the file system can exchange directories."""
    path, partial = checkpoint_path(tmp_path, 7), partial_of(checkpoint_path(tmp_path, 7))
    for place in (path, partial):
        place.mkdir()
        (place / "run.json").write_text(place.name)
    rename = Path.rename

    def watched(origin: Path, target: Path) -> Path:
        assert not atomic, f"{origin} is nowhere for a moment"
        return rename(origin, target)

    monkeypatch.setattr(Path, "rename", watched)
    if not atomic:
        monkeypatch.setattr(store_module, "exchange", lambda first, second: False)
    store_module._put_in_place(partial, path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert (path / "run.json").read_text() == partial.name


def simulate(saves: list[int], policy: KeepPolicy, total: int) -> list[int]:
    """The checkpoints on disk at the end of a run that saves at ``saves``."""
    on_disk: set[int] = set()
    for step in saves:
        on_disk |= {step}
        kept = steps_to_keep(on_disk, policy, total)
        assert step in kept and kept <= on_disk
        on_disk = kept
    return sorted(on_disk)


def test_policies():
    every_ten = list(range(10, 101, 10))
    assert simulate(every_ten, ALL, 100) == every_ten
    assert simulate(every_ten, KeepPolicy(policy="last", number=3), 100) == [80, 90, 100]
    assert simulate(every_ten, KeepPolicy(policy="last", number=1), 100) == [100]
    assert steps_to_keep([], ALL, 100) == set()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize(("every", "total"), [(1, 6), (10, 60), (500, 4768), (7, 100), (33, 500), (3, 20)])
def test_equispaced_leaves_the_nearest(number, every, total):
    """Deleting as the run goes leaves the same as choosing at the end with everything still there."""
    saves = [*range(every, total, every), total]
    left = simulate(saves, KeepPolicy(policy="equispaced", number=number), total)
    nearest = {min(saves, key=lambda step: abs(step - total * part / number)) for part in range(1, number + 1)}
    assert {min(abs(s - total * p / number) for s in left) for p in range(1, number + 1)} == {
        min(abs(s - total * p / number) for s in saves) for p in range(1, number + 1)
    }
    assert len(left) == len(nearest) and left[-1] == total
    if len(saves) >= 2 * number:
        assert len(left) == number


def test_equispaced_survives_extra_saves():
    """A save at SIGTERM at an odd step moves nothing but itself."""
    policy = KeepPolicy(policy="equispaced", number=3)
    assert simulate([10, 20, 23, 30, 40, 50, 60], policy, 60) == [20, 40, 60]


def test_listing(store):
    (store.directory / "step_00000040.partial").mkdir()
    (store.directory / "notes").mkdir()
    assert list(store.complete()) == [10, 20, 30]
    assert store.latest() == store.directory / "step_00000030"
    assert CheckpointStore(store.directory / "absent", ALL, 30).latest() is None
    assert recognise(store.latest()) is Kind.MEGATRON
    assert architecture_of(store.latest()) == TINY
    with pytest.raises(CheckpointError, match=r"Did you mean .*checkpoints/step_00000030"):
        recognise(store.directory.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path / "__0_0.distcp", 1000), r"__0_0.distcp has 1,000 bytes; [0-9,]+ were written"),
        (lambda path: (path / "__0_0.distcp").unlink(), r"__0_0.distcp is missing"),
        (lambda path: (path / ".metadata").unlink(), r"\.metadata is missing"),
        (lambda path: (path / "hf" / "config.json").unlink(), r"config.json is missing"),
        (lambda path: (path / "run.json").unlink(), r"run.json does not exist"),
        (lambda path: (path / "run.json").write_text("{"), r"run.json is damaged"),
        (lambda path: (path / "run.json").write_text("[" * 100_000), r"run.json is damaged"),
        (lambda path: ((path / "run.json").unlink(), (path / "run.json").mkdir()), r"run.json cannot be read"),
        (lambda path: (path / "run.json").write_text('{"format": 9, "files": {}}'), r"format 9"),
    ],
)
def test_a_damaged_newest_is_named_and_never_skipped(store, damage, message):
    damage(store.directory / "step_00000030")
    damage(store.directory / "step_00000020")
    with pytest.raises(CheckpointError, match=message) as caught:
        store.latest()
    assert "Remove or rename" in str(caught.value) and "to resume from step_00000010" in str(caught.value)


def all_pieces(contents: Contents) -> list[Piece]:
    return [piece for tensor in contents.tensors.values() for piece in tensor.pieces]


def flip_a_bit_of(path: Path, key: str) -> None:
    """Change one bit in the middle of the numbers of a checkpoint's tensor."""
    place = read_metadata(path).tensors[key].pieces[0].extent
    with (path / place.file).open("r+b") as file:
        file.seek(place.offset)
        with zipfile.ZipFile(io.BytesIO(file.read(place.length))) as archive:
            numbers = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
            file.seek(place.offset + numbers.header_offset + 64 + numbers.file_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 64]))


def test_a_flipped_bit_is_found_before_weights_are_used(store, source, tmp_path):
    """Bytes changed in place keep the size: conversion, averages and new stages look at the checksums."""
    path, key = store.directory / "step_00000030", "decoder.layers.1.mlp.linear_fc2.weight"
    flip_a_bit_of(path, key)
    message = rf"{key} in __0_0.distcp is damaged .*\n.*\n  Take another checkpoint"
    with pytest.raises(CheckpointError, match=message):
        plan_conversion(path, Kind.HF)
    with pytest.raises(CheckpointError, match=message):
        DistributedCheckpointReader(path)

    def begin_a_stage() -> None:
        with pytest.raises(CheckpointError, match=message):
            load_weights([], path, TINY)

    alone(begin_a_stage)


@pytest.mark.parametrize("name", [".metadata", "hf/config.json"])
def test_a_flipped_bit_beside_the_weights_is_found(store, name):
    """Of what says where each number is and what the model computes with it."""
    path = store.directory / "step_00000030"
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} was changed after it was written"):
        store.latest()
    with pytest.raises(CheckpointError, match=rf"{name} was changed after it was written"):
        DistributedCheckpointReader(path)


def test_an_older_checkpoint_has_no_digests(store):
    path = store.directory / "step_00000030"
    record = json.loads((path / "run.json").read_text())
    del record["sha256"]
    (path / "run.json").write_text(json.dumps(record))
    assert store.latest() == path


def test_a_piece_is_not_taken_for_the_one_before_it(store):
    """A ZIP archive is found from its end: with another length in the directory, another piece fits its checksums."""
    path = store.directory / "step_00000030"
    contents = read_metadata(path)
    first, second = sorted((piece.extent for piece in all_pieces(contents)), key=lambda extent: extent.offset)[:2]
    wrong = Extent(first.file, first.offset, second.end - first.offset)
    piece = Piece((0,), (1,), wrong)
    with pytest.raises(CheckpointError, match="the archive does not begin there"):
        verify(path, Contents({"a": StoredTensor((1,), torch.bfloat16, (piece,))}, {}))


def test_more_files_than_may_be_open(store, monkeypatch):
    path = store.directory / "step_00000030"
    metadata = torch_metadata(path)
    expected = DistributedCheckpointReader(path)
    names = list(expected.tensors)
    numbers = {name: expected.read(name, 0, expected.tensors[name].rows) for name in names}
    whole = (path / "__0_0.distcp").read_bytes()
    for number, place in enumerate(metadata.storage_data.values()):
        place.relative_path = f"__{number}_0.distcp"
        (path / place.relative_path).write_bytes(whole[place.offset : place.offset + place.length])
        place.offset = 0
    write_metadata(path, metadata)
    split = DistributedCheckpointReader(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, hard))
    try:
        for name in [*names, *names]:
            assert (split.read(name, 0, expected.tensors[name].rows) == numbers[name]).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_checkpoint_that_its_run_removes_meanwhile(store):
    """Its files are opened when something in them is asked for."""
    path, key = store.directory / "step_00000030", "decoder.final_layernorm.weight"
    reader = PieceReader(path, read_metadata(path))
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=r"__0_0.distcp could not be read: No such file.*\n.*checkpoint\.keep"):
        reader.fill(torch.empty(TINY.decoder.hidden_size), key, (0,))


@pytest.mark.parametrize(
    ("stopped", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (SystemExit(143), SystemExit)]
)
def test_being_told_to_stop_is_no_damage(stopped, raised):
    """torch collects Ctrl-C like any failure; reported as one, its advice was to remove a sound checkpoint."""
    stack: Any = None
    with pytest.raises(raised):
        first_failure(CheckpointException("read", {0: (OSError("disk"), stack), 1: (stopped, stack)}))
    failure = first_failure(CheckpointException("read", {1: (OSError("disk"), stack)}))
    assert str(failure) == "disk"


def test_damaged_inside(store, source, monkeypatch):
    """What describes the tensors is checked against the files, also where the checksums fit it."""
    monkeypatch.setattr(DistributedWeights, "verify", lambda self: None)
    path = store.directory / "step_00000030"
    file = path / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    place = data.index(b"BFloat16Storage")
    data[place : place + 15] = b"XFloat16Storage"
    file.write_bytes(data)
    checkpoint = DistributedCheckpointReader(path)
    with pytest.raises(CheckpointError, match="distcp"):
        for name, spec in checkpoint.tensors.items():
            checkpoint.read(name, 0, spec.rows)


def test_load_weights_only_and_refuse_as_resume(store, source, tmp_path):
    from megatron_apriel.checkpoint.loading import load_weights

    @alone
    def checks() -> None:
        expected, model = (build_model(TINY, ModelOptions(), Layout(1)) for _ in range(2))
        load_weights(expected, source, TINY)
        assert store.load(store.latest(), model) == {}
        for one, other in zip(expected[0].parameters(), model[0].parameters(), strict=True):
            assert torch.equal(one, other)
        with pytest.raises(CheckpointError, match=r"holds weights and no optimizer state.*\n.*init_from"):
            store.load(store.latest(), model, optimizer=object())
        deeper = TINY.with_layers(5)
        with pytest.raises(CheckpointError, match=r"missing \(decoder.layers.4"):
            store.load(store.latest(), build_model(deeper, ModelOptions(), Layout(1)))
        shallower = TINY.with_layers(3)
        with pytest.raises(CheckpointError, match=r"left over \(decoder.layers.3"):
            store.load(store.latest(), build_model(shallower, ModelOptions(), Layout(1)))


def test_save_prunes_and_replaces(source, tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="equispaced", number=2), 4)

    @alone
    def checks() -> None:
        chunks = build_model(TINY, ModelOptions(), Layout(1))
        for step in (1, 2, 2, 3, 4):
            (tmp_path / "checkpoints" / "step_00000099.partial").mkdir(parents=True, exist_ok=True)
            saved = store.save(step, chunks, None, {"sequences": step}, source)
            assert read_run_file(saved.path).extra == {"sequences": step}

    assert sorted(entry.name for entry in store.directory.iterdir()) == ["step_00000002", "step_00000004"]


def test_a_checkpoint_that_was_moved_and_linked_is_not_in_the_way(source, tmp_path):
    """The policy lets go of the link, and what it leads to is its owner's."""
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="last", number=1), 9)

    @alone
    def checks() -> None:
        chunks = build_model(TINY, ModelOptions(), Layout(1))
        first = store.save(1, chunks, None, {}, source)
        first.path.rename(tmp_path / "moved")
        first.path.symlink_to(tmp_path / "moved")
        for step in (2, 3):
            store.save(step, chunks, None, {}, source)

    assert [entry.name for entry in store.directory.iterdir()] == ["step_00000003"]
    assert read_run_file(tmp_path / "moved").step == 1


def test_a_checkpoint_that_somebody_reads_on_nfs_ends_no_run(source, tmp_path, monkeypatch, capfd):
    """There, a file that is open gets another name when it is removed, and keeps its directory until it is closed."""
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="last", number=1), 9)
    unlink, read = os.unlink, ".nfs000000000000c0de"

    def busy(path: Any, *args: Any, **named: Any) -> None:
        if Path(path).name == read:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, *args, **named)

    @alone
    def checks() -> None:
        chunks = build_model(TINY, ModelOptions(), Layout(1))
        first = store.save(1, chunks, None, {}, source)
        (first.path / read).touch()
        monkeypatch.setattr(os, "unlink", busy)
        for step in (2, 3):
            store.save(step, chunks, None, {}, source)
        monkeypatch.undo()
        assert {entry.name for entry in store.directory.iterdir()} == {"step_00000001.partial", "step_00000003"}
        store.save(4, chunks, None, {}, source)

    assert [entry.name for entry in store.directory.iterdir()] == ["step_00000004"]
    assert "step_00000001.partial cannot be removed: [Errno 16]" in capfd.readouterr().err


def test_sidecars_survive_their_source(source, tmp_path):
    """A resumed run takes them from the checkpoint that it resumed from, which the policy may remove."""
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="last", number=1), 9)

    @alone
    def checks() -> None:
        chunks = build_model(TINY, ModelOptions(), Layout(1))
        first = store.save(1, chunks, None, {}, source)
        for step in (2, 3):
            store.save(step, chunks, None, {}, first.path / "hf")

    (path,) = store.complete().values()
    assert path.name == "step_00000003" and architecture_of(path) == TINY
    assert json.loads((path / "hf" / "config.json").read_text())["dtype"] == "float32"
