"""A run's checkpoints: written whole or not at all, listed, verified, resumed from, and thinned out.

A checkpoint is a directory ``step_00000500`` with the shards of :mod:`state`, the config and tokenizer files in
``hf/``, and ``run.json``: step, layout, the run's own state, and the size of every file. It is written under
``step_00000500.partial``, flushed to disk and renamed; the rename is the only moment at which it comes to be. What a
killed run leaves under ``.partial`` is never read, and removed by the next save.

A checkpoint that was complete and is damaged now (a truncated or missing file) is an error that says so. Going on from
an older one instead is the user's decision, never made in silence.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import megatron.core
import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from torch import nn
from torch.distributed.checkpoint import CheckpointException

from megatron_apriel.checkpoint.agreement import UNCHANGED, on_first_rank
from megatron_apriel.checkpoint.forms import CONFIG, SIDECAR_DIRECTORY, config_for, sidecar_directory
from megatron_apriel.checkpoint.retention import steps_to_keep
from megatron_apriel.checkpoint.run_file import read_run_file, write_run_file, write_sidecars
from megatron_apriel.checkpoint.shard_writer import first_failure
from megatron_apriel.checkpoint.state import architecture_of_model, load_state, save_state, unwrapped
from megatron_apriel.config.schema import KeepPolicy
from megatron_apriel.errors import CheckpointError

_NAME = re.compile(r"step_(\d{8,})")
_PARTIAL = ".partial"


class CheckpointStore:
    """The checkpoints of one run, in one directory that nothing else writes to.

    Args:
        directory: made by the first save.
        keep: which of them stay on disk.
        total_steps: length of the run, to which equal spacing refers.
    """

    def __init__(self, directory: str | Path, keep: KeepPolicy, total_steps: int) -> None:
        self.directory, self.keep, self.total_steps = Path(directory), keep, total_steps

    def complete(self) -> dict[int, Path]:
        """The checkpoints by step, oldest first. Their files are not looked at."""
        if not self.directory.is_dir():
            return {}
        found = {int(match[1]): path for path in self.directory.iterdir() if (match := _NAME.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def latest(self) -> Path | None:
        """The newest checkpoint, its files verified by size; None if there is none. Needs no process group.

        Raises:
            CheckpointError: the newest is damaged; the message names the file and the newest whole one before it.
        """
        paths = list(self.complete().values())
        if not paths:
            return None
        try:
            read_run_file(paths[-1])
        except CheckpointError as error:
            whole = next((path for path in reversed(paths[:-1]) if _is_whole(path)), None)
            instead = f"to go on from {whole.name}" if whole else "to begin the run again"
            raise CheckpointError(
                error.what, "It was complete when it was written.", f"Remove or rename {paths[-1]} {instead}."
            ) from None
        return paths[-1]

    def save(
        self,
        step: int,
        chunks: Sequence[nn.Module],
        optimizer: MegatronOptimizer | None,
        extra: dict[str, Any],
        sidecars: str | Path,
    ) -> Path:
        """Write the checkpoint of ``step`` and remove those that the policy no longer keeps; collective.

        Args:
            step: finished optimizer steps.
            chunks: this rank's model chunks, wrapped or not, with gathered parameters.
            optimizer: Megatron's distributed optimizer; None saves weights only.
            extra: the run's own state, plain JSON, the same on all ranks: data position, schedule, counts.
            sidecars: checkpoint of any kind whose config, tokenizer and processor files go along. Where it has been
                removed since the run began, the newest checkpoint's copies of them are taken.

        Raises:
            CheckpointError: on all ranks, if it could not be written; earlier checkpoints are unchanged.
        """
        models = unwrapped(chunks)
        path = self.directory / f"step_{step:08d}"
        partial = path.with_name(path.name + _PARTIAL)
        on_first_rank(lambda: self._prepare(partial), path)
        try:
            saved = save_state(partial, models, optimizer)
        except CheckpointException as error:  # torch raises it on all ranks alike
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            # What torch says of a full disk does not tell that it is one.
            free = shutil.disk_usage(self.directory).free
            raise CheckpointError(
                f"{path} could not be written: {first_failure(error)}.",
                UNCHANGED,
                f"The file system has {free:,} bytes free. Make room if that is too little, and start the same command"
                " again.",
            ) from error
        record = {
            "step": step,
            **saved,
            "extra": extra,
            "versions": {"torch": torch.__version__, "megatron_core": megatron.core.__version__},
        }
        dtype = str(next(models[0].parameters()).dtype).removeprefix("torch.")

        def finish() -> None:
            architecture, source = architecture_of_model(models), self._sidecars(Path(sidecars))
            try:
                write_sidecars(partial, config_for(architecture, source, dtype), source)
                publish(partial, path, record)
            except Exception:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._remove_superseded()

        on_first_rank(finish, path)
        return path

    def load(
        self, path: str | Path, chunks: Sequence[nn.Module], optimizer: MegatronOptimizer | None = None
    ) -> dict[str, Any]:
        """Continue from the checkpoint at ``path``, saved from this or any other layout; collective.

        Weights, optimizer and, on the layout that it was saved from, random states are restored. With None for the
        optimizer only the weights are.

        Returns:
            ``extra`` as it was given to :meth:`save`.

        Raises:
            CheckpointError: damaged, of another model, or with another set of trained parts.
        """
        path = Path(path)
        record = read_run_file(path)
        restored = load_state(path, unwrapped(chunks), optimizer, record)
        if optimizer is not None and not restored and dist.get_rank() == 0:
            print(f"{path} is of another layout ({record['layout']}): random states begin anew from the seed")
        extra: dict[str, Any] = record["extra"]
        return extra

    def _prepare(self, partial: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for stale in self.directory.glob(f"step_*{_PARTIAL}"):
            shutil.rmtree(stale)
        partial.mkdir()

    def _sidecars(self, given: Path) -> Path:
        if given.is_dir():
            return sidecar_directory(given) if not (given / CONFIG).exists() else given
        newest = list(self.complete().values())[-1:]
        return newest[0] / SIDECAR_DIRECTORY if newest else given

    def _remove_superseded(self) -> None:
        complete = self.complete()
        for step in complete.keys() - steps_to_keep(complete.keys(), self.keep, self.total_steps):
            # Renamed first: a checkpoint that is being removed must not look like one.
            going = complete[step].with_name(complete[step].name + _PARTIAL)
            complete[step].rename(going)
            shutil.rmtree(going, ignore_errors=True)


def publish(partial: Path, path: Path, record: dict[str, Any]) -> None:
    """Write ``run.json`` with the sizes of all files, flush everything to disk and give it its name."""
    write_run_file(partial, record)
    for entry in [*partial.rglob("*"), partial]:
        flush(entry)
    if path.exists():
        # Saved again at the same step, after a resume: the same state, so that which of the two stays is no matter.
        former = path.with_name(f"{path.name}.former{_PARTIAL}")
        path.rename(former)
        partial.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    else:
        partial.rename(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(path: Path) -> bool:
    try:
        read_run_file(path)
    except CheckpointError:
        return False
    return True
