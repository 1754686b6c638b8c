"""A training run of one rank inside this process: saves a small checkpoint, and resumes from any that is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.parallel import cpu, groups
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import ALONE
from tests.distributed.training_run import ARCHITECTURE, KEEP_ALL, Run

_kept = ExitStack()
"""Process groups last as long as the process."""


@cache
def _start() -> None:
    """Make the process group of one rank, for good."""
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    cpu.enable()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    _kept.enter_context(groups.initialized(ALONE.layout, seed=5))


@cache
def single_run() -> Run:
    """The run of this process that resumes."""
    _start()
    return Run(ALONE.layout, dtype=torch.bfloat16)


def save_checkpoint(directory: Path, source: Path) -> Path:
    """A checkpoint after one step, below ``directory``; ``source`` gets the model that it began from."""
    write_hf_checkpoint(source, ARCHITECTURE, dtype="bfloat16")
    _start()
    run = Run(ALONE.layout, dtype=torch.bfloat16)
    run.start_from(source)
    run.steps(0, 1)
    saved = CheckpointStore(directory, KEEP_ALL, 4).save(1, run.wrapped, run.optimizer, {"sequences": 4}, source)
    assert saved is not None
    return saved.path


def resumed(directory: Path) -> list[Tensor]:
    """Weights, main parameters and moments after resuming from the newest checkpoint below ``directory``."""
    run = single_run()
    for tensor in _state(run):
        tensor.fill_(float("nan"))  # nothing of an earlier resumption may pass for this one's
    store = CheckpointStore(directory, KEEP_ALL, 4)
    newest = store.latest()
    assert newest is not None
    store.load(newest, run.chunks, run.optimizer)
    return [tensor.clone() for tensor in _state(run)]


def _state(run: Run) -> Iterator[Tensor]:
    for chunk in run.chunks:
        yield from (parameter.data for parameter in chunk.parameters())
    for part in getattr(run.optimizer, "chained_optimizers", [run.optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                yield from (numbers.read(0, len(numbers)) for numbers in part.optimizer.numbers(parameter).values())
