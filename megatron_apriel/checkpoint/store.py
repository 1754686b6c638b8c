"""A run's checkpoints: written whole or not at all, listed, verified, resumed from, and thinned out.

A checkpoint is a directory ``step_00000500`` with the shards of :mod:`training_state`, the config and tokenizer files
in ``hf/``, and ``run.json``: step, layout, the run's own state, and the size of every file. It is written under
``step_00000500.partial``, flushed to disk and renamed; only the rename makes it a checkpoint. What a killed run leaves
under ``.partial`` is never read, and removed by the next save.

The shards may be written in the background, while training continues. All else is done by all ranks together, in
:meth:`CheckpointStore.finish`: no rank's thread decides alone that a checkpoint is whole.

A checkpoint that was complete and is damaged now (a truncated or missing file) is an error that says so. Resuming from
an older one instead is the user's decision, never made in silence.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron.core
import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from torch import nn
from torch.distributed.checkpoint import CheckpointException

from megatron_apriel.checkpoint.background_save import HostBuffers, ShardWriting, WriteState, first_failure
from megatron_apriel.checkpoint.training_state import (
    architecture_of_model,
    current_layout,
    divide_state,
    load_state,
    unwrapped,
)
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.config.retention import steps_to_keep
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import config_for, sidecar_directory
from megatron_apriel.formats.run_directory import (
    SIDECAR_DIRECTORY,
    checkpoint_path,
    checkpoints_in,
    former_of,
    partial_of,
    partials_in,
)
from megatron_apriel.formats.run_record import newest_checkpoint, read_run_file, write_run_file
from megatron_apriel.formats.sidecars import write_sidecars
from megatron_apriel.outputs import exchange, flush, flush_directory, free_space
from megatron_apriel.parallel.agreement import UNCHANGED, alike, on_first_rank
from megatron_apriel.terminal import note, say


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is in place, and what it cost.

    Attributes:
        step: finished optimizer steps in it.
        path: its directory.
        seconds: from the beginning of the save until it was whole on disk.
        blocked_seconds: of these, for how long training stood still.
        waited_seconds: of these, for what was being written in the background.
    """

    step: int
    path: Path
    seconds: float
    blocked_seconds: float
    waited_seconds: float


@dataclass
class _Save:
    """A save whose shards are planned, and maybe being written."""

    path: Path
    writing: ShardWriting
    record: dict[str, Any]
    """What ``run.json`` will hold."""
    architecture: Architecture
    dtype: str
    sidecars: Path
    started: float
    blocked_seconds: float | None = None
    """Until training continued; None where it does not before the end."""


class CheckpointStore:
    """The checkpoints of one run, in one directory that nothing else writes to.

    Args:
        directory: made by the first save, in one that is there.
        keep: which of them stay on disk.
        total_steps: length of the run, to which equal spacing refers.
        kept_besides: of the steps that ``keep`` lets go those that stay all the same.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: KeepPolicy,
        total_steps: int,
        kept_besides: Callable[[Collection[int]], set[int]] = lambda steps: set(),
    ) -> None:
        self.directory, self.keep, self.total_steps = Path(directory), keep, total_steps
        self._kept_besides = kept_besides
        self._pending: _Save | None = None
        self._buffers = HostBuffers()

    def complete(self) -> dict[int, Path]:
        """The checkpoints by step, oldest first. Their files are not looked at."""
        return checkpoints_in(self.directory)

    def latest(self) -> Path | None:
        """:func:`newest_checkpoint` of the run."""
        return newest_checkpoint(self.directory)

    def save(
        self,
        step: int,
        chunks: Sequence[nn.Module],
        optimizer: MegatronOptimizer | None,
        extra: dict[str, Any],
        sidecars: str | Path,
        *,
        background: bool = False,
    ) -> Saved | None:
        """Write the checkpoint of ``step`` and remove those that the policy no longer keeps; collective.

        Args:
            step: finished optimizer steps.
            chunks: this rank's model chunks, wrapped or not, with gathered parameters.
            optimizer: Megatron's distributed optimizer; None saves weights only.
            extra: the run's own state, plain JSON, the same on all ranks: data position, schedule, counts.
            sidecars: checkpoint of any kind whose config, tokenizer and processor files go along. Where it has been
                removed since the run began, the newest checkpoint's copies of them are taken.
            background: return as soon as the state is copied to host memory, so that training can continue while it is
                written. The checkpoint is then put in place by :meth:`finish`, which must come before another save.

        Returns:
            What was saved; None in the background.

        Raises:
            CheckpointError: on all ranks, if it could not be written; earlier checkpoints are unchanged.
        """
        assert self._pending is None, "a save is pending: its files would be removed as left over"
        started = time.perf_counter()
        models = unwrapped(chunks)
        path = checkpoint_path(self.directory, step)
        on_first_rank(lambda: self._prepare(partial_of(path)), path)
        try:
            writing, saved = divide_state(partial_of(path), models, optimizer)
        except CheckpointException as error:
            raise self._failed(path, error) from error
        record = {
            "step": step,
            **saved,
            "extra": extra,
            "versions": {"torch": torch.__version__, "megatron_core": megatron.core.__version__},
        }
        dtype = str(next(models[0].parameters()).dtype).removeprefix("torch.")
        self._pending = _Save(path, writing, record, architecture_of_model(models), dtype, Path(sidecars), started)
        if not background:
            return self.finish()
        writing.start(self._buffers)
        self._pending.blocked_seconds = time.perf_counter() - started
        return None

    @property
    def pending(self) -> bool:
        """Whether a save was begun and not finished; the same on all ranks."""
        return self._pending is not None

    def write_state(self) -> WriteState:
        """How far this rank is with writing the pending save, if there is one; asks no other rank."""
        return self._pending.writing.state() if self._pending is not None else WriteState.ENDED

    def finish(self) -> Saved:
        """Wait until the pending save is written by all ranks, and put the checkpoint in place; collective.

        Raises:
            CheckpointError: as :meth:`save`.
        """
        save, self._pending = self._pending, None
        assert save is not None, "no save is pending"
        called = time.perf_counter()
        try:
            save.writing.finish()
        except CheckpointException as error:
            save.writing.abandon()  # where this rank was asked to stop waiting, its thread still writes
            raise self._failed(save.path, error) from error
        written = time.perf_counter()
        on_first_rank(lambda: self._publish(save), save.path)
        ended = time.perf_counter()
        seconds, before = ended - save.started, save.blocked_seconds
        if before is None:
            return Saved(save.record["step"], save.path, seconds, blocked_seconds=seconds, waited_seconds=0.0)
        blocked, waited = before + ended - called, written - called
        return Saved(save.record["step"], save.path, seconds, blocked, waited)

    def close(self) -> None:
        """Give up a pending save, without the other ranks: for the end of a run that failed.

        What there is of it stays under ``.partial``.
        """
        if self._pending is not None:
            self._pending.writing.abandon()

    def load(
        self,
        path: str | Path,
        chunks: Sequence[nn.Module],
        optimizer: MegatronOptimizer | None = None,
        peaks: Mapping[float, float] | None = None,
    ) -> dict[str, Any]:
        """Continue from the checkpoint at ``path``, saved from this or any other layout; collective.

        Weights, optimizer and, on the layout and the kind of machine that saved it, random states are restored. With
        None for the optimizer only the weights are. ``peaks``: see :func:`load_state`.

        Returns:
            ``extra`` as it was given when it was saved.

        Raises:
            CheckpointError: damaged, of another model, or with another set of trained parts.
        """
        path = Path(path)
        record = alike(lambda: read_run_file(path))
        restored = load_state(path, unwrapped(chunks), optimizer, record, peaks)
        if optimizer is not None and not restored and dist.get_rank() == 0:
            layout = record.layout.model_dump() if record.layout is not None else "none"
            lacks = "has no random states of these generators, as on a machine of another kind"
            why = lacks if layout == current_layout() else f"is of another layout ({layout})"
            say(f"{path} {why}: random states begin anew from the seed")
        return record.extra

    def _failed(self, path: Path, error: CheckpointException) -> CheckpointError:
        """What torch raised, as the same error on all ranks; removes what was written."""
        if dist.get_rank() == 0:
            shutil.rmtree(partial_of(path), ignore_errors=True)
        # What torch says of a full disk does not say that it is one.
        _, free = free_space(self.directory)
        return CheckpointError(
            f"{path} could not be written: {first_failure(error)}.",
            UNCHANGED,
            f"The file system has {free:,} bytes free. Make room if that is too little, and start the same command"
            " again.",
        )

    def _publish(self, save: _Save) -> None:
        partial = partial_of(save.path)
        given = self._sidecars(save.sidecars)
        try:
            write_sidecars(partial / SIDECAR_DIRECTORY, given, config_for(save.architecture, given, save.dtype))
            write_run_file(partial, save.record)
            _put_in_place(partial, save.path)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._remove_superseded()

    def _prepare(self, partial: Path) -> None:
        self.directory.mkdir(exist_ok=True)  # and nothing above it: a run's output that is gone stays so
        for stale in partials_in(self.directory):
            _remove(stale)
        partial.mkdir()

    def _sidecars(self, given: Path) -> Path:
        if given.is_dir():
            return sidecar_directory(given)
        newest = list(self.complete().values())[-1:]
        return sidecar_directory(newest[0]) if newest else given

    def _remove_superseded(self) -> None:
        complete = self.complete()
        superseded = complete.keys() - steps_to_keep(complete.keys(), self.keep, self.total_steps)
        for step in superseded - self._kept_besides(superseded):
            # Renamed first: a checkpoint that is being removed must not look like one.
            going = partial_of(complete[step])
            try:
                complete[step].rename(going)
            except OSError as error:  # the next save tries again; the one that is in place now is whole
                note(f"warning: {complete[step]} cannot be removed: {error}")
                continue
            _remove(going)


def _remove(path: Path) -> None:
    """Remove what is no checkpoint, or none any more. Where that fails, say so: the next save tries again.

    On NFS a directory cannot go while somebody reads a file of it. Of a checkpoint that was moved elsewhere and left a
    link in its place, the link goes.
    """
    try:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        note(f"warning: {path} cannot be removed: {error}")


def _put_in_place(partial: Path, path: Path) -> None:
    """Flush everything to disk, then give it its name."""
    flush_directory(partial)
    if not path.exists():
        partial.rename(path)
    elif not exchange(partial, path):
        # Saved again at the same step, after a resume, where a file system has no atomic exchange.
        former = former_of(path)
        path.rename(former)
        partial.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    flush(path.parent)
    shutil.rmtree(partial, ignore_errors=True)  # what an exchange has left there
