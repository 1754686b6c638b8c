"""A run's checkpoints: written whole or not at all, listed, verified, resumed from, and thinned out.

A checkpoint is a directory ``step_00000500`` with the shards of :mod:`state`, the config and tokenizer files in
``hf/``, and ``run.json``: step, layout, the run's own state, and the size of every file. It is written under
``step_00000500.partial``, flushed to disk and renamed; the rename is the only moment at which it comes to be. What a
killed run leaves under ``.partial`` is never read, and removed by the next save.

A checkpoint that was complete and is damaged now (a truncated or missing file) is an error that says so. Going on from
an older one instead is the user's decision, never made in silence.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron.core
import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from torch import nn

from megatron_apriel.checkpoint.forms import (
    CONFIG,
    RUN_FILE,
    SIDECAR_DIRECTORY,
    config_for,
    copy_sidecars,
    sidecar_directory,
)
from megatron_apriel.checkpoint.retention import steps_to_keep
from megatron_apriel.checkpoint.state import architecture_of_model, load_state, save_state, unwrapped
from megatron_apriel.config.schema import KeepPolicy
from megatron_apriel.errors import AprielError, CheckpointError

FORMAT = 1
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
        chunks: list[nn.Module],
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
        _on_first_rank(lambda: self._prepare(partial), path)
        try:
            saved = save_state(partial, models, optimizer)
        except Exception as error:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{path} could not be written: {error}.", _UNCHANGED) from error
        record = {
            "format": FORMAT,
            "step": step,
            **saved,
            "extra": extra,
            "versions": {"torch": torch.__version__, "megatron_core": megatron.core.__version__},
        }
        dtype = str(next(models[0].parameters()).dtype).removeprefix("torch.")

        def finish() -> None:
            architecture, source = architecture_of_model(models), self._sidecars(Path(sidecars))
            write_sidecars(partial, config_for(architecture, source, dtype), source)
            publish(partial, path, record)
            self._remove_superseded()

        _on_first_rank(finish, path)
        return path

    def load(
        self, path: str | Path, chunks: list[nn.Module], optimizer: MegatronOptimizer | None = None
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


def write_sidecars(checkpoint: Path, config: dict[str, object], source: Path) -> None:
    """Put ``config`` and the tokenizer and processor files of ``source`` into a distributed checkpoint."""
    directory = checkpoint / SIDECAR_DIRECTORY
    directory.mkdir()
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_sidecars(source, directory)


def publish(partial: Path, path: Path, record: dict[str, Any]) -> None:
    """Write ``run.json`` with the sizes of all files, flush everything to disk and give it its name."""
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(partial)): file.stat().st_size for file in files}
    text = json.dumps({**record, "files": sizes}, indent=2)
    (partial / RUN_FILE).write_text(text + "\n", encoding="utf-8")
    for entry in [*files, partial / RUN_FILE, *(entry for entry in partial.rglob("*") if entry.is_dir()), partial]:
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


def read_run_file(path: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint whose files all have the sizes that it records.

    Raises:
        CheckpointError: naming the file that is missing, damaged or of another size.
    """
    file = path / RUN_FILE
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known, sizes = record["format"], dict(record["files"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist." if path.is_dir() else f"{path} does not exist.",
            "A run's checkpoint has one; it is written last.",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}.") from None
    if known != FORMAT:
        raise CheckpointError(f"{file} is of format {known!r}; this version of the project reads {FORMAT}.")
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise CheckpointError(f"{path / name} {state}; {size:,} were written.", "The checkpoint is damaged.")
    return record


def _is_whole(path: Path) -> bool:
    try:
        read_run_file(path)
    except CheckpointError:
        return False
    return True


_UNCHANGED = "Earlier checkpoints are unchanged."


def _on_first_rank(work: Callable[[], None], path: Path) -> None:
    """Do ``work`` on rank 0 and let every rank know how it ended, so that they go on or fail together."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except (AprielError, OSError, TypeError, ValueError) as error:
            outcome[0] = f"{path} could not be written: {error}"
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise CheckpointError(outcome[0], _UNCHANGED)
