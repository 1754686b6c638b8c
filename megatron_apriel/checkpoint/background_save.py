"""One rank's part of a save: planned with all ranks, then written by itself, at once or while training continues.

A save has four parts, and only what follows the plan depends on whether the run waits for it:

* *plan*, collective: every rank says what it holds and learns what it is to write. Nothing is copied.
* *copy*, only for writing in the background: what this rank is to write goes to host memory, so that training may
  change the original.
* *write*: a file of torch's format, a piece of a tensor at a time, flushed to disk. No communication: a collective of a
  second thread would cross those of training.
* *finish*, collective: the first rank learns where everything lies and writes torch's ``.metadata``.

Nothing is written outside of these: where one rank writes for all, it alone could fail, and others would wait for it.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, Metadata, SavePlan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper

from megatron_apriel.checkpoint.optimizer_shards import Boxes
from megatron_apriel.formats.run_record import SHARD_SUFFIX
from megatron_apriel.outputs import appears

Data = Tensor | io.BytesIO


class FileWriter(FileSystemWriter):
    """torch's writer of a rank's file, with four differences.

    It leaves the directory's path out of ``.metadata``: that may hold a secret, and changes. It has in memory what it
    is writing at the moment; torch's keeps all that it has written until the file is whole. It looks whether all
    ranks' files are there. And beside ``.metadata`` it names the format, as Megatron does.
    """

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._check_files(results)
        super().finish(metadata, results)
        save_config(CheckpointingConfig("torch_dist", 1), str(self.path))

    def _check_files(self, results: list[list[WriteResult]]) -> None:
        """Raise OSError where a rank has written elsewhere: to a directory of its host, if that lost the shared one."""
        ends: dict[str, int] = {}
        for result in itertools.chain(*results):
            place = result.storage_data
            ends[place.relative_path] = max(place.offset + place.length, ends.get(place.relative_path, 0))
        for name, end in ends.items():
            if not appears(Path(self.path) / name, end):
                raise OSError(f"{name} is not there as rank 0 sees it; the host that wrote it has another directory")

    def storage_meta(self) -> StorageMeta | None:
        meta = super().storage_meta()
        return meta and replace(meta, checkpoint_id=None)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        name, results = f"{plan.storage_data.prefix}0{SHARD_SUFFIX}", []
        with (Path(self.path) / name).open("wb") as stream:
            for item in plan.items:
                start = stream.tell()
                write_piece(stream, planner.resolve_data(item))
                place = _StorageInfo(name, start, stream.tell() - start)
                results.append(WriteResult(index=item.index, size_in_bytes=place.length, storage_data=place))
            if self.sync_files:
                stream.flush()
                os.fsync(stream.fileno())
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done


def write_piece(stream: BinaryIO, data: Data) -> None:
    """Append a tensor as torch saves it, or bytes as they are."""
    if not isinstance(data, io.BytesIO):
        tensor, data = data.detach().cpu(), io.BytesIO()
        # torch would also save the rest of a storage of which the tensor is a part.
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        # By way of memory: a disk that is full is an error of writing then, not of torch's format.
        torch.save(tensor if alone else tensor.clone(memory_format=torch.contiguous_format), data)
    stream.write(data.getvalue())


class WriteState(IntEnum):
    """How far a rank is with writing. The greatest of all ranks' says whether to wait: only while it is UNDER_WAY."""

    ENDED = 0
    UNDER_WAY = 1
    FAILED = 2


def host_bytes_of(item: WriteItem, pinned: bool) -> int:
    """Host memory that :class:`HostBuffers` takes for what is to be written; torch rounds up what it pins."""
    if item.tensor_data is None:
        return 0
    size = prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
    return 1 << (size - 1).bit_length() if pinned and size else size


class HostBuffers:
    """Pinned host memory for copies of device tensors, kept from save to save: pinning takes longer than copying."""

    def __init__(self) -> None:
        self._pinned: dict[MetadataIndex, Tensor] = {}

    def copies(self, tensors: Iterable[tuple[MetadataIndex, Data]]) -> dict[MetadataIndex, Data]:
        """Copies in host memory that share nothing with ``tensors``; valid until the next call."""
        former, self._pinned = self._pinned, {}
        copies: dict[MetadataIndex, Data] = {}
        for index, data in tensors:
            if isinstance(data, io.BytesIO):
                copies[index] = data
            elif data.device.type == "cpu":
                copies[index] = data.clone(memory_format=torch.contiguous_format)
            else:
                buffer = former.pop(index, None)
                if buffer is None or buffer.shape != data.shape or buffer.dtype != data.dtype:
                    buffer = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
                copies[index] = self._pinned[index] = buffer.copy_(data, non_blocking=True)
        if self._pinned:
            torch.cuda.synchronize()
        return copies


class ShardWriting:
    """What this rank is to write of one checkpoint, and how it went; collective to make.

    Args:
        directory: exists, is empty, and is the same for all ranks.
        state_dict: this rank's shards as torch saves them. Until :meth:`start` or :meth:`finish` returns they must stay
            as they are.

    Raises:
        CheckpointException: on all ranks, if the plan fails on any.
    """

    def __init__(self, directory: Path, state_dict: dict[str, Any]) -> None:
        self._ranks = _DistWrapper(None, use_dist=True, coordinator_rank=0)
        self._planner = _Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._writer = FileWriter(directory, sync_files=True)
        self._metadata: Metadata
        """Of the whole checkpoint; on the first rank only."""
        self._written: Future[list[WriteResult]] | None = None
        self._thread: threading.Thread | None = None

        def here() -> SavePlan:
            self._planner.set_up_planner(state_dict, self._writer.storage_meta(), self._ranks.is_coordinator)
            self._writer.set_up_storage_writer(self._ranks.is_coordinator)
            return self._writer.prepare_local_plan(self._planner.create_local_plan())

        def together(plans: list[SavePlan]) -> list[SavePlan]:
            plans, self._metadata = self._planner.create_global_plan(plans)
            return self._writer.prepare_global_plan(plans)

        self._plan = self._planner.finish_plan(self._ranks.reduce_scatter("plan", here, together))

    def host_bytes(self, pinned: bool) -> int:
        """Host memory that copies of what this rank is to write take; see :func:`host_bytes_of`."""
        return sum(host_bytes_of(item, pinned) for item in self._plan.items)

    def start(self, buffers: HostBuffers) -> None:
        """Copy what is to be written to host memory and begin to write it in a thread.

        A failure is kept for :meth:`finish`, where all ranks learn of it: raised here it would end this rank alone.
        """
        self._written = Future()
        try:
            self._planner.copy(self._plan, buffers)
            self._thread = threading.Thread(target=self._write_and_tell, args=(self._written,), name="checkpoint")
            self._thread.start()
        except Exception as error:
            self._written.set_exception(error)

    def state(self) -> WriteState:
        """This rank's; without communication."""
        if self._written is None or not self._written.done():
            return WriteState.UNDER_WAY
        return WriteState.ENDED if self._written.exception() is None else WriteState.FAILED

    def finish(self) -> None:
        """Wait until all ranks have written, or write now where :meth:`start` was not called; collective.

        Raises:
            CheckpointException: on all ranks, if any failed; by then none is writing any more.
        """
        written = self._write if self._written is None else self._written.result
        self._ranks.all_reduce("write", written, lambda results: self._writer.finish(self._metadata, results))

    def abandon(self) -> None:
        """Write nothing more; returns when this rank's thread has ended, at the latest after the tensor in hand."""
        self._planner.abandoned.set()
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> list[WriteResult]:
        return self._writer.write_data(self._plan, self._planner).wait()

    def _write_and_tell(self, written: Future[list[WriteResult]]) -> None:
        try:
            written.set_result(self._write())
        except BaseException as error:
            written.set_exception(error)


class _Planner(MCoreSavePlanner):  # type: ignore[misc]
    """Megatron's plan. torch's writer asks it for each tensor when its turn has come."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.abandoned = threading.Event()
        self._copies: dict[MetadataIndex, Data] = {}

    def copy(self, plan: SavePlan, buffers: HostBuffers) -> None:
        """Take copies of what is to be written, and let go of the originals."""
        original = super().resolve_data
        self._copies = buffers.copies((item.index, original(item)) for item in plan.items)
        self.state_dict.clear()

    def lookup_object(self, index: MetadataIndex) -> Any:
        held = self.state_dict[index.fqn]
        # torch looks for shards in tensors only.
        return held.__get_tensor_shard__(index) if isinstance(held, Boxes) else super().lookup_object(index)

    def resolve_data(self, write_item: WriteItem) -> Data:
        if self.abandoned.is_set():
            raise InterruptedError("the save was abandoned")
        # Asked for once. What was written must not wait in memory for the other ranks.
        copy = self._copies.pop(write_item.index, None)
        original: Data = super().resolve_data(write_item) if copy is None else copy
        return original


def first_failure(error: CheckpointException) -> Exception:
    """What went wrong on the first of the ranks that torch's saving or loading collected failures from.

    Raises:
        KeyboardInterrupt, SystemExit: torch collects them, too; a rank that was asked to stop has found no fault.
    """
    failures = []
    for failure, _ in error.failures.values():
        if not isinstance(failure, Exception):
            raise failure
        failures.append(failure)
    return failures[0]
