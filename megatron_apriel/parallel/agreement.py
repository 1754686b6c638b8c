"""Work that one rank does for all, and whose outcome all must share: nobody continues, or waits, alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_apriel.errors import AprielError, CheckpointError
from megatron_apriel.parallel.groups import current_device

UNCHANGED = "What was there before is unchanged."


def on_first_rank(work: Callable[[], None], path: Path) -> None:
    """Do ``work``, which writes ``path``, on rank 0 and let every rank know how it ended; collective.

    Raises:
        CheckpointError: on all ranks, if it failed for a reason outside of the program.
    """
    failure = None
    if dist.get_rank() == 0:
        try:
            work()
        except (AprielError, OSError) as error:
            failure = error
    agree(failure, path)


def agree(failure: Exception | None, path: Path) -> None:
    """Raise on every rank what failed on rank 0, or nowhere; collective. Other ranks' ``failure`` is not looked at."""
    outcome: list[Any] = [None if failure is None else str(failure)]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(failure, AprielError):
        raise failure
    if outcome[0] is not None:
        raise CheckpointError(f"{path} could not be written: {outcome[0]}", UNCHANGED) from failure


def of_all_ranks[Value](value: Value) -> list[Value]:
    """Every rank's value, in rank order; collective. For small ones, which are pickled. A process alone has its own."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def greatest(number: int) -> int:
    """The greatest of all ranks' numbers; collective. What is queued on the device is not waited for."""
    if dist.get_world_size() == 1:
        return number
    device = current_device()
    with torch.cuda.stream(_stream()) if device.type == "cuda" else contextlib.nullcontext():
        numbers = torch.tensor([number], device=device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return int(numbers.item())


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def alike[Result](work: Callable[[], Result]) -> Result:
    """What ``work`` returns to this rank, or an error on all ranks if it fails on any; collective.

    For what each rank does for itself, without communication, and may fail at alone: a file that one host lacks, a
    disk that one host cannot read. The others would wait for that rank until they are timed out.

    Raises:
        AprielError: on ranks where nothing went wrong, naming one where something did. That rank raises its own error.
    """
    result: Result | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    said = of_all_ranks(None if failure is None else str(failure) or repr(failure))
    if failure is not None:
        raise failure
    failed = [(rank, message) for rank, message in enumerate(said) if message is not None]
    if failed:
        rank, message = failed[0]
        raise AprielError(
            f"{len(failed)} of {len(said)} ranks cannot continue, so all end; rank {rank} says:",
            message.replace("\n", "\n  "),
        )
    return result  # type: ignore[return-value]
