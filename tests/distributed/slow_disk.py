"""Disks that are slow, stand still or are full, for the writing of a rank's tensors. For forked ranks only."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from torch.distributed.checkpoint import filesystem

from megatron_apriel.checkpoint.background_save import HostBuffers


def hold_writing(items: int = 3) -> threading.Event:
    """From here on this rank's writing stands still after so many tensors, until the event is set."""
    released, written, write_item = threading.Event(), itertools.count(), filesystem._write_item

    def held(*arguments: Any) -> Any:
        if next(written) >= items:
            assert released.wait(60)
        return write_item(*arguments)

    filesystem._write_item = held
    return released


def slow_writing(seconds: float) -> None:
    """From here on this rank's writing takes so much longer for each tensor."""
    write_item = filesystem._write_item

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return write_item(*arguments)

    filesystem._write_item = slow


def fail_writing(at: str = "writing") -> None:
    """From here on this rank cannot write, or not even copy what is to be written."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    if at == "copying":
        HostBuffers.copies = full
    else:
        filesystem._write_item = full
