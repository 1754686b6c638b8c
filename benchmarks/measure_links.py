"""One rank of ``links.py``: collectives and messages between all GPUs of this host, timed by the device."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import environment
from megatron_apriel.parallel import groups

REPETITIONS, ROUNDS = 8, 5


def seconds(work: Callable[[], Any]) -> float:
    """Median duration of ``work``, which may be queued on the device, over rounds of several; the slowest rank's."""
    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    taken = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        wait()
        begun = time.perf_counter()
        for _ in range(REPETITIONS):
            work()
        wait()
        taken.append((time.perf_counter() - begun) / REPETITIONS)
    slowest = torch.tensor(statistics.median(taken[1:]), dtype=torch.float64, device=groups.current_device())
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


def measured(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """GB/s that a rank sends (and receives) in each kind of communication, by the bytes of the whole tensor."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    found = []
    for size in sizes:
        whole = torch.zeros(size // 2, dtype=torch.bfloat16, device=groups.current_device())
        part = whole.chunk(ranks)[rank].clone()
        moved = size * (ranks - 1) / ranks
        kinds: dict[str, tuple[Callable[[], Any], float]] = {
            "all-gather": (partial(dist.all_gather_into_tensor, whole, part), moved),
            "reduce-scatter": (partial(dist.reduce_scatter_tensor, part, whole), moved),
            "all-reduce": (partial(dist.all_reduce, whole), 2 * moved),
            "message to the next rank": (partial(_around, whole), float(size)),
        }
        for kind, (work, bytes_moved) in kinds.items():
            taken = seconds(work)
            found.append({"kind": kind, "bytes": size, "microseconds": 1e6 * taken, "gb_s": bytes_moved / taken / 1e9})
    return found


def _around(tensor: torch.Tensor) -> None:
    """Every rank sends to the next and receives from the one before."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor)
    sending = dist.P2POp(dist.isend, tensor, (rank + 1) % ranks)
    receiving = dist.P2POp(dist.irecv, received, (rank - 1) % ranks)
    for request in dist.batch_isend_irecv([sending, receiving]):
        request.wait()


def main(arguments: Sequence[str]) -> int:
    """Measure the sizes of the first argument; the first rank writes the result to the second."""
    specification, destination = json.loads(arguments[0]), Path(arguments[1])
    sys.stdin.readline()
    with groups.joined():
        found = measured(specification["sizes"])
    if os.environ.get("RANK", "0") == "0":
        destination.write_text(json.dumps({"found": found, "environment": environment()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
