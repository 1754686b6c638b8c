"""Several ranks on one machine for tests: fork, meet over gloo, run one function, bring back what it returns.

Starting Python and importing torch and megatron-core takes ten seconds per rank; a fork of a process that has already
imported them takes a tenth of one. Ranks meet through a file, so that no port is taken, and each has one thread.
"""

from __future__ import annotations

import faulthandler
import io
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_apriel.parallel import cpu


class RankFailure(AssertionError):
    """A rank raised, died or did not answer in time; the message holds its traceback."""


_LAST_WORDS_S = 30.0
"""How long the other ranks may take to notice that one has failed, and to say so."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
    """Run ``function(rank, world_size, *args)`` on ``world_size`` gloo ranks and return their results in rank order.

    Each rank is a fork of this process with RANK, LOCAL_RANK and WORLD_SIZE set, the default process group made, and
    the CPU layer on. Results travel back by pickle, tensors by value.

    Args:
        world_size: number of ranks.
        function: may be a local function or a lambda: nothing is pickled on the way in.
        args: further arguments; every rank sees its own copy of them.
        timeout: seconds until all ranks must have answered.

    Raises:
        RankFailure: with the traceback of every rank that failed, and the ranks that did not answer.
    """
    # Imported before the fork, once, so that every rank has them for nothing.
    import megatron.core.distributed
    import megatron.core.optimizer
    import megatron.core.pipeline_parallel  # noqa: F401

    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory(prefix="ranks_") as directory:
        store = Path(directory) / "store"
        processes = [
            context.Process(target=_rank_main, args=(rank, world_size, store, function, args, answers))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            return _collect(processes, answers, time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(processes: list[Any], answers: Any, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    while missing := set(range(len(processes))) - results.keys() - errors.keys():
        # Before the look into the queue: a process that has ended by now has put there all that it had to say.
        ended = any(processes[rank].exitcode is not None for rank in missing)
        try:
            rank, result, error = answers.get(timeout=0.2)
        except queue.Empty:
            if ended or time.monotonic() > deadline:
                break
            continue
        if error is None:
            results[rank] = result
        else:
            errors[rank] = error
            # The others now wait for a rank that is gone, or fail because of it.
            deadline = min(deadline, time.monotonic() + _LAST_WORDS_S)
    problems = [f"rank {rank} of {len(processes)} raised:\n{errors[rank]}" for rank in errors]
    if missing:
        states = {rank: processes[rank].exitcode for rank in sorted(missing)}
        problems.append(f"no answer from ranks (rank: exit code, None while running): {states}")
    if problems:
        raise RankFailure("\n".join(problems))
    for process in processes:
        process.join(timeout=10)
    return [torch.load(io.BytesIO(results[rank]), weights_only=False) for rank in range(len(processes))]


def _rank_main(
    rank: int, world_size: int, store: Path, function: Callable[..., Any], args: tuple[Any, ...], answers: Any
) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    try:
        cpu.enable()
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        # As bytes: shared memory, the queue's own way for tensors, ends with this process.
        blob = io.BytesIO()
        torch.save(function(rank, world_size, *args), blob)
        answers.put((rank, blob.getvalue(), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
