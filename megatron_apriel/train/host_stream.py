"""States that lie in host memory come to the device for an update and go back, piece by piece, both ways at once.

The device has room for three pieces: while one is updated, the next one comes and the one before goes back. On a GPU
three streams do that, one for each way and the one that computes, and events keep their order; nothing is computed on
the host. What limits an update is the link: up to 10 bytes of each parameter in each direction. Beside a CPU the pieces
take the same ways, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from megatron_apriel.planning.memory import PIECES_ON_THE_WAY

type Job = tuple[Tensor, Callable[[Tensor], None]]
"""Bytes on the host, and what is to happen to them while they are on the device."""


class HostStream:
    """The way between host and device.

    Args:
        device: where updates are computed.
        piece_bytes: of the largest piece.
    """

    def __init__(self, device: torch.device, piece_bytes: int) -> None:
        self._rooms = [torch.empty(piece_bytes, dtype=torch.uint8, device=device) for _ in range(PIECES_ON_THE_WAY)]
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)
            # The rooms may lie where something is still computed.
            self._up.wait_stream(torch.cuda.current_stream())

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs in their order. On a GPU they are only queued; :meth:`wait` returns when they are done."""
        if not self._on_gpu:
            for number, (packed, work) in enumerate(jobs):
                here = self._rooms[number % len(self._rooms)][: len(packed)].copy_(packed)
                work(here)
                packed.copy_(here)
            return
        compute = torch.cuda.current_stream()
        # What the host still gets of an earlier round must not be read before.
        self._up.wait_stream(self._down)
        free = [torch.cuda.Event() for _ in self._rooms]
        for number, (packed, work) in enumerate(jobs):
            room = number % len(self._rooms)
            here = self._rooms[room][: len(packed)]
            if number >= len(self._rooms):
                self._up.wait_event(free[room])
            with torch.cuda.stream(self._up):
                here.copy_(packed, non_blocking=True)
            compute.wait_stream(self._up)
            work(here)
            self._down.wait_stream(compute)
            with torch.cuda.stream(self._down):
                packed.copy_(here, non_blocking=True)
                free[room].record(self._down)

    def wait(self) -> None:
        """Until host memory holds what the last round gives."""
        if self._on_gpu:
            self._down.synchronize()
