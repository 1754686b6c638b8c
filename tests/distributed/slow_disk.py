"""Disks that are slow, stand still or are full, for the writing of a rank's tensors. For forked ranks only."""

from __future__ import annotations

import builtins
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from megatron_apriel.checkpoint import background_save
from megatron_apriel.checkpoint.background_save import HostBuffers, ShardWriting

LONG_S = 300.0
"""Seconds that nothing here takes unless it waits for what does not come."""


@dataclass(frozen=True)
class Held:
    """Writing that stands still: since when, and until when."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


def hold_writing(items: int = 3) -> Held:
    """From here on this rank's writing stands still after so many tensors, until it is released."""
    held, written, write_piece = Held(), itertools.count(), background_save.write_piece

    def writing(*arguments: Any) -> None:
        if next(written) >= items:
            held.reached.set()
            assert held.released.wait(LONG_S)
        write_piece(*arguments)

    background_save.write_piece = writing
    return held


def hold_writing_until_all_wait(here: bool, seconds: float = 0.5) -> None:
    """Each save's writing stands still until every rank waits for it, and so much longer; to be called on all ranks.

    Args:
        here: whether it is this rank's writing that does.
        seconds: that each rank's wait takes at least.
    """
    held, start, finish = hold_writing() if here else Held(), ShardWriting.start, ShardWriting.finish

    def started(*arguments: Any) -> None:
        held.released.clear()
        start(*arguments)

    def finished(writing: ShardWriting) -> None:
        dist.barrier()
        threading.Timer(seconds, held.released.set).start()
        finish(writing)

    ShardWriting.start, ShardWriting.finish = started, finished  # type: ignore[method-assign]


def writing_has_ended() -> None:
    """Wait for this rank's thread that writes a checkpoint, whether it fails or not."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(LONG_S)
            assert not thread.is_alive()


def slow_writing(seconds: float) -> list[float]:
    """From here on this rank's writing takes so much longer for each tensor; returns a list that has one entry each."""
    begun: list[float] = []
    write_piece = background_save.write_piece

    def slow(*arguments: Any) -> None:
        begun.append(seconds)
        time.sleep(seconds)
        write_piece(*arguments)

    background_save.write_piece = slow
    return begun


def fail_writing(at: str = "writing") -> None:
    """From here on this rank cannot write, or not even copy what is to be written, or not the files beside it."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    if at == "copying":
        HostBuffers.copies = full
    elif at == "naming the format":
        opened = open

        def opening(file: Any, *arguments: Any, **named: Any) -> Any:
            return full() if str(file).endswith("/metadata.json") else opened(file, *arguments, **named)

        builtins.open = opening
    else:
        background_save.write_piece = full
