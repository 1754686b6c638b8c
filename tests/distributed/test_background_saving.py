"""Checkpoints that are written while training goes on: of the step at which they were begun, and whole or not there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from slow_disk import LONG_S, fail_writing, hold_writing, hold_writing_until_all_wait, slow_writing
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from training_run import ARCHITECTURE, KEEP_ALL, Run
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.checkpoint.background_save import HostBuffers, WriteState, host_bytes_of
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.random_state import random_states
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.checkpoint.training_state import bytes_of_copy
from megatron_apriel.config.output_sections import CheckpointSection
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.run_record import read_run_file
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.testing.changed_checkpoints import changed_metadata
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import RankFailure, run_ranks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("hf"), ARCHITECTURE, dtype="bfloat16")


def _saved_both_ways(rank: int, world_size: int, layout: Layout, source: Path, where: Path, dtype: torch.dtype) -> Any:
    with groups.initialized(layout, seed=5):
        run, store = Run(layout, dtype=dtype), CheckpointStore(where / "background", KEEP_ALL, 4)
        run.start_from(source)
        run.steps(0, 2)
        CheckpointStore(where / "foreground", KEEP_ALL, 4).save(2, run.wrapped, run.optimizer, {"sequences": 8}, source)
        held = hold_writing()
        assert store.save(2, run.wrapped, run.optimizer, {"sequences": 8}, source, background=True) is None
        losses = run.steps(2, 4)
        assert held.reached.wait(LONG_S)
        assert store.pending and store.write_state() == WriteState.UNDER_WAY
        assert list(store.complete()) == [] and (store.directory / "step_00000002.partial").is_dir()
        held.released.set()
        saved = store.finish()
        assert not store.pending and store.write_state() == WriteState.ENDED
        assert (saved.step, saved.path) == (2, store.latest())
        assert saved.blocked_seconds < saved.seconds
        return losses


def _resumed(rank: int, world_size: int, layout: Layout, where: Path, dtype: torch.dtype) -> list[float]:
    with groups.initialized(layout, seed=77):
        run, store = Run(layout, dtype=dtype), CheckpointStore(where, KEEP_ALL, 4)
        store.load(store.latest(), run.chunks, run.optimizer)
        return run.steps(2, 4)


@pytest.mark.parametrize(
    ("name", "dtype"), [("DP2", "bfloat16"), ("TP2 SP", "float32"), ("PP2 VP2", "float32"), ("one", "bfloat16")]
)
def test_what_training_changes_meanwhile_is_not_in_it(checkpoint, tmp_path, name, dtype):
    """Byte for byte the checkpoint of a save that was waited for, although two steps were made while it was written."""
    layout, dtype = layout_of(name), getattr(torch, dtype)
    losses = run_ranks(layout.world_size, _saved_both_ways, layout, checkpoint, tmp_path, dtype)
    foreground, background = (tmp_path / way / "step_00000002" for way in ("foreground", "background"))
    files = {file.relative_to(foreground) for file in foreground.rglob("*") if file.is_file()}
    assert files == {file.relative_to(background) for file in background.rglob("*") if file.is_file()}
    assert sum(file.suffix == ".distcp" for file in files) == layout.world_size
    for file in files - {Path(".metadata"), Path("run.json")}:
        assert (foreground / file).read_bytes() == (background / file).read_bytes(), file
    one, other = (json.loads((way / "run.json").read_text(encoding="utf-8")) for way in (foreground, background))
    # torch numbers every save in it.
    assert one["sha256"].pop(".metadata") and other["sha256"].pop(".metadata")
    assert one == other
    assert read_metadata(foreground) == read_metadata(background)
    assert run_ranks(layout.world_size, _resumed, layout, tmp_path / "background", dtype) == losses


def _predicted_and_taken(rank: int, world_size: int, name: str, source: Path, where: Path, forms: Any) -> Any:
    layout, taken = layout_of(name), []
    with groups.initialized(layout):
        run, store = Run(layout, dtype=torch.bfloat16, **forms), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        predicted, copies = bytes_of_copy(run.chunks, run.optimizer), HostBuffers.copies
        assert not where.exists()
        dist.barrier()

        def counted(buffers: HostBuffers, tensors: Any) -> Any:
            copied = copies(buffers, tensors)
            taken.extend(data.nbytes for data in copied.values() if isinstance(data, torch.Tensor))
            return copied

        HostBuffers.copies = counted
        store.save(1, run.chunks, run.optimizer, {}, source, background=True)
        store.finish()
        stage = run.trainer.config.model_copy(update={"checkpoint": CheckpointSection(background=True)})
        rank = parallel_state.get_pipeline_model_parallel_rank()
        random = sum(state.nbytes for state in random_states().values())
        return predicted, sum(taken), rank_memory(stage, ARCHITECTURE, layout, rank).host_copy + random


@pytest.mark.parametrize(
    ("name", "forms"), [("DP2", {}), ("DP2", {"moments": "bfloat16"}), ("TP2 SP", {}), ("PP2", {}), ("one", {})]
)
def test_how_much_a_copy_takes_is_known_before(checkpoint, tmp_path, name, forms):
    layout = layout_of(name)
    answers = run_ranks(layout.world_size, _predicted_and_taken, name, checkpoint, tmp_path / "run", forms)
    assert all(predicted == copied for predicted, copied, _ in answers)
    taken, planned = (sum(figures) for figures in list(zip(*answers, strict=True))[1:])
    # Of what tensor-parallel ranks hold alike, one has the copy; a plan counts it for each.
    assert taken == planned if layout.tensor == 1 else taken == pytest.approx(planned, rel=0.4)


def test_memory_that_is_pinned_is_rounded_up():
    """To a power of two, by torch's allocator of it."""
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((3, 100)))
    data = TensorWriteData(chunk, TensorProperties(dtype=torch.float32), torch.Size((9, 100)))
    item = WriteItem(MetadataIndex("a"), WriteItemType.SHARD, tensor_data=data)
    assert [host_bytes_of(item, pinned) for pinned in (False, True)] == [1200, 2048]


def _resumed_without_a_random_state(rank: int, world_size: int, source: Path, where: Path) -> None:
    layout = layout_of("one")
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        path = store.save(1, run.chunks, run.optimizer, {}, source).path
        store.load(path, run.chunks, run.optimizer)
        print("now without")
        with changed_metadata(path) as metadata:
            del metadata.state_dict_metadata["random.python"]
            metadata.storage_data = {i: at for i, at in metadata.storage_data.items() if i.fqn != "random.python"}
        store.load(path, run.chunks, run.optimizer)


def test_why_random_states_begin_anew_is_said(checkpoint, tmp_path, capfd):
    """As where a run that began on a CPU goes on on a GPU, whose generator has no state in the checkpoint."""
    run_ranks(1, _resumed_without_a_random_state, checkpoint, tmp_path / "run")
    before, after = capfd.readouterr().out.split("now without")
    assert "begin anew" not in before and "layout" not in after
    assert "has no random states of these generators" in after and "begin anew from the seed" in after


WAIT_S = 0.5


def _finished_early(rank: int, world_size: int, source: Path, where: Path) -> Any:
    layout = layout_of("DP2")
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        # One rank is late: the others wait for it.
        hold_writing_until_all_wait(rank == 1, WAIT_S)
        saves = []
        for step in (1, 2):
            store.save(step, run.chunks, run.optimizer, {}, source, background=True)
            run.steps(step - 1, step)
            called = time.perf_counter()
            saves.append((store.finish(), time.perf_counter() - called))
        assert list(store.complete()) == [1, 2]
        return saves


def test_to_finish_waits_for_every_rank(checkpoint, tmp_path):
    for saves in run_ranks(2, _finished_early, checkpoint, tmp_path):
        for saved, seconds in saves:
            assert WAIT_S <= saved.waited_seconds < seconds
            assert saved.waited_seconds < saved.blocked_seconds < saved.seconds


def _killed_while_writing(rank: int, world_size: int, source: Path, where: Path) -> None:
    layout = layout_of("DP2")
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        run.steps(0, 2)
        store.save(2, run.chunks, run.optimizer, {}, source)
        run.steps(2, 3)
        held = hold_writing()
        store.save(3, run.chunks, run.optimizer, {}, source, background=True)
        run.steps(3, 4)
        assert held.reached.wait(LONG_S)
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)


def _undisturbed(rank: int, world_size: int, source: Path) -> list[float]:
    layout = layout_of("DP2")
    with groups.initialized(layout):
        run = Run(layout)
        run.start_from(source)
        return run.steps(0, 4)[2:]


def test_killed_while_it_is_written(checkpoint, tmp_path):
    with pytest.raises(RankFailure, match="-9"):
        run_ranks(2, _killed_while_writing, checkpoint, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003.partial"]
    left = {path.name for path in (tmp_path / "step_00000003.partial").iterdir()}
    assert "__0_0.distcp" in left and not left & {".metadata", "run.json"}
    assert CheckpointStore(tmp_path, KEEP_ALL, 4).latest() == tmp_path / "step_00000002"
    expected = run_ranks(2, _undisturbed, checkpoint)
    assert run_ranks(2, _resumed, layout_of("DP2"), tmp_path, torch.float32) == expected


def _fails_on_one_rank(rank: int, world_size: int, source: Path, where: Path, at: str) -> tuple[str, list[str]]:
    layout, failing = layout_of("TP2 SP"), 0 if at == "naming the format" else 1
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        store.save(1, run.chunks, run.optimizer, {}, source)

        if rank == failing:
            fail_writing(at)
        store.save(2, run.chunks, run.optimizer, {}, source, background=True)
        run.steps(0, 1)
        while store.write_state() == WriteState.UNDER_WAY:
            time.sleep(0.01)
        assert store.write_state() == (WriteState.FAILED if rank == failing == 1 else WriteState.ENDED)
        with pytest.raises(CheckpointError) as caught:
            store.finish()
        dist.barrier()
        return str(caught.value), sorted(path.name for path in where.iterdir())


@pytest.mark.parametrize("at", ["writing", "copying", "naming the format"])
def test_a_write_that_fails_on_one_rank_fails_on_all(checkpoint, tmp_path, at):
    for message, names in run_ranks(2, _fails_on_one_rank, checkpoint, tmp_path, at):
        assert "step_00000002 could not be written" in message
        assert "No space left" in message and "unchanged" in message and "bytes free" in message
        assert names == ["step_00000001"]


def _given_up(rank: int, world_size: int, source: Path, where: Path) -> int:
    layout = layout_of("one")
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        begun = slow_writing(1)
        store.save(1, run.chunks, run.optimizer, {}, source, background=True)
        store.close()
        assert threading.active_count() == 1
        return len(begun)


def test_a_save_that_is_given_up_ends_soon(checkpoint, tmp_path):
    """It has a hundred tensors, each of which takes a second."""
    (tensors,) = run_ranks(1, _given_up, checkpoint, tmp_path)
    assert tensors < 50
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.partial"]
    with pytest.raises(CheckpointError, match="does not exist"):
        read_run_file(tmp_path / "step_00000001.partial")
